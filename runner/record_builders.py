"""What records a run, from plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import Field

from runner.data.dataset import DatasetWriter
from runner.record.tensordict import TensorDictRecorder
from runner.spec import EnvSpec, as_key
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
    return TensorDictRecorder(writer, skip_reset, skip, keys)
