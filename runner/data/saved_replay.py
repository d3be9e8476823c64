"""The rows of a replay buffer in a checkpoint, for those who only read them."""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.dataset import Dataset
from runner.data.dataset_header import DatasetError, key_of_field
from runner.data.journal import Journal, JournalError
from runner.data.memmap import Saved, read_saved
from runner.data.ring import Layout, Ring
from runner.data.storage import name_of
from runner.spec import ACTION, OBSERVATION, StateDict


def place_of_module(module_id: str, since: int = 0) -> str:
    """Where in a run's folder one of several modules writes.

    Args:
        since: env steps of the run after which it came, 0 for the beginning: what one of the same name had written
            before it was removed may be in checkpoints, and stays as it is.
    """
    return f"modules/{module_id}-{since}" if since else f"modules/{module_id}"


def dataset_of(source: StateDict, run: Path) -> Dataset:
    """The transitions that a source in the run's folder ``run`` held when it was saved; rows in files take no memory.

    Of several replay buffers those of the largest. They are in the order of the ring: ``about["oldest"]`` is the row
    that came first.

    Raises:
        DatasetError: where there are none, or the files do not hold what they held then.
    """
    found = [_of_storage(storage, run) for storage in _storages(source)]
    if not found:
        raise DatasetError(run, "its checkpoint holds no replay rows; hooks=[default,record_tensordict] records a run")
    return max(found, key=len)


def _storages(source: Any) -> Iterator[StateDict]:
    """Those of a replay buffer, or of each one in a mixture, that hold anything."""
    if isinstance(source, dict):
        storage = source.get("storage")
        if isinstance(storage, dict) and (storage.get("fields") or storage.get("journal")):
            yield storage
        for part in source.values():
            yield from _storages(part)


def _of_storage(state: StateDict, run: Path) -> Dataset:
    try:
        if "journal" in state:
            return _in_files(state, run)
        fields = {key_of_field(name): field for name, field in state["fields"].items()}
        filled_rows, num_envs = next(iter(fields.values())).shape[:2]
        about = {"num_envs": num_envs, "skip": 1, "oldest": state["cursor"] % filled_rows * num_envs}
        flat = {key: field.flatten(0, 1) for key, field in fields.items()}
        return Dataset.of_tensors(run, flat, _spec(flat), about)
    except (JournalError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"its replay rows cannot be used: {error}"
        raise error if isinstance(error, DatasetError) else DatasetError(run, reason) from None


class _Unchanged(Journal):
    """A file that is only looked at."""

    def cut(self, end: int) -> None:
        """Leave what was written after ``end``: it is nobody's business here."""


def _in_files(state: StateDict, run: Path) -> Dataset:
    capacity, num_envs, total = (state[name] for name in ("capacity", "num_envs", "total"))
    if not all(type(one) is int and 0 < one < 2**48 for one in (capacity, num_envs, total)) or capacity % num_envs:
        raise ValueError(f"{total!r:.20} rows of {num_envs!r:.20} environments in a ring of {capacity!r:.20}")
    rows = capacity // num_envs
    saved = {key_of_field(name): read_saved(entry) for name, entry in state["journal"].items()}
    filled = min(total, rows) * num_envs
    tensors = {key: _show(run, key, one, (rows, num_envs, total))[:filled] for key, one in saved.items()}
    about = {"num_envs": num_envs, "skip": 1, "oldest": total % rows * num_envs if total > rows else 0}
    return Dataset.of_tensors(run, tensors, _spec(tensors), about)


def _show(run: Path, key: NestedKey, saved: Saved, ring_of: tuple[int, int, int]) -> Tensor:
    """One field ``[capacity, ...]``, whose memory is its file."""
    rows, num_envs, total = ring_of
    folder = run.absolute() / "replay"
    if folder.is_symlink() or not folder.is_dir():
        raise JournalError(folder, "is not a folder")
    journal, layout = _Unchanged(folder / f"{name_of(key)}.rows", is_new=False), Layout(num_envs * saved.nbytes, rows)
    journal.verify(*layout.window(total), saved.digests)
    ring = Ring(journal, layout)
    ring.restore(total)
    ring.region.protect()
    shape = rows * num_envs, *saved.shape
    return torch.frombuffer(ring.region.buffer, dtype=saved.dtype, count=prod(shape)).view(shape)


def _spec(tensors: Mapping[NestedKey, Tensor]) -> dict[str, Any]:
    """What the rows tell of their environment; ``None`` for what they do not."""
    unknown = ("id", "num_actions", "action_low", "action_high", "max_episode_steps", "reward_threshold")
    spec: dict[str, Any] = dict.fromkeys(unknown) | {"frame_skip": None, "observation_high": None}
    for name, key in (("observation", OBSERVATION), ("action", ACTION)):
        spec |= {f"{name}_shape": list(tensors[key].shape[1:])}
        spec |= {f"{name}_dtype": str(tensors[key].dtype).removeprefix("torch.")}
    return spec
