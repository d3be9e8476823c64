"""Datasets: written by a run, and opened again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import Field

from runner.checkpoint.store import CheckpointStore
from runner.data.dataset import Dataset, DatasetError, DatasetWriter
from runner.data.dataset_header import HEADER
from runner.data.saved_replay import dataset_of, place_of_module
from runner.record.tensordict import TensorDictRecorder
from runner.spec import CheckpointError, EnvSpec, as_key
from runner.types import KeyPath, PositiveInt

FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$", description="a folder's name")]
TAKEN = ("ckpt", "replay", "videos")
"""Folders of a run that hold something else."""


def make_tensordict_recorder(
    spec: EnvSpec,
    run: Any = None,
    out_file_base: FolderName = "dataset",
    skip_reset: bool = True,
    skip: PositiveInt = 4,
    in_keys: Annotated[Sequence[KeyPath], Len(1)] | None = None,
) -> TensorDictRecorder | None:
    """Writes collected env steps into a dataset in the folder of a run; ``None`` where there is none to write to.

    Args:
        run: the run's folder, or anything with such a ``path``.
        out_file_base: the dataset's folder in there.
        skip_reset, skip, in_keys: see :class:`TensorDictRecorder`; a nested entry is a list of names.
    """
    if out_file_base in TAKEN:
        raise ValueError(f"out_file_base={out_file_base}: the run keeps something else there; choose another name")
    if run is None:
        return None
    writer = DatasetWriter(Path(getattr(run, "path", run)) / out_file_base, spec)
    keys = None if in_keys is None else [as_key(key) for key in in_keys]
    return TensorDictRecorder(writer, skip_reset, skip, keys, spec)


def open_dataset(path: str | Path, verify: bool = True) -> Dataset:
    """The rows in a folder: of a dataset, or of a run, which has recorded one or saved its replay buffer.

    Of a run that did both the recorded ones, which are all that it collected; ``<run>/ckpt`` asks for the others. A
    replay buffer's rows say less of their environment, and are those of the newest good checkpoint, of a run that does
    not go on meanwhile. Of a run of several modules ``<run>/modules/<id>`` says which.

    Args:
        verify: read each file of a dataset once and compare its SHA-256; checkpoints are compared always.

    Raises:
        DatasetError: where there is none, or one in which anything is amiss.
    """
    folder = Path(path)
    for place in (folder, folder / "dataset"):
        if (place / HEADER).exists():
            return Dataset(place, verify)
    run, module_id = _run_and_module(folder)
    found: list[Dataset] = []
    places: dict[str, Path] = {}

    def accept(state: dict[str, Any]) -> None:
        source = state.get("source", {})
        places.clear()
        places.update({one: _place_of(one, state, run) for one in _modules_of(state) if one in source})
        if module_id is None and not places:
            place = run
        elif module_id in places and folder.name in (module_id, places[module_id].name):
            source, place = source[module_id], places[module_id]
        else:
            return  # which is no fault of the checkpoint
        try:
            found[:] = [dataset_of(source, place)]
        except DatasetError as error:
            raise CheckpointError(str(error)) from error

    if not (run / "ckpt").is_dir():
        raise DatasetError(folder, f"there is no {HEADER} in it, and it is no run's folder")
    try:
        CheckpointStore(run).load(accept=accept)
    except CheckpointError as error:
        raise DatasetError(folder, str(error)) from error
    if not found:
        there = ", ".join(map(str, places.values())) or f"only {run}"
        raise DatasetError(folder, f"which module's data? there is {there}")
    return found[0]


def _run_and_module(folder: Path) -> tuple[Path, str | None]:
    if folder.parent.name == "modules" and not (folder / "ckpt").exists():
        return folder.parent.parent, folder.name.partition("-")[0]
    return (folder.parent if folder.name == "ckpt" else folder), None


def _modules_of(state: Mapping[str, Any]) -> list[str]:
    return list(state.get("learner", {}).get("rl_module", {}))


def _place_of(module_id: str, state: Mapping[str, Any], run: Path) -> Path:
    """Where the module of a checkpoint writes; of one that came later the checkpoint says when."""
    entry: Any = state.get("collector", {}).get("members", {}).get(module_id) or ()
    since = entry[2] if len(entry) > 2 and type(entry[2]) is int else 0
    return run / place_of_module(module_id, since)
