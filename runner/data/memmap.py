"""A replay buffer that may be larger than memory, and whose checkpoints cost what was added since the last one."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.dataset_header import DTYPES, MAX_DIMENSIONS
from runner.data.journal import Journal, JournalError, sync_names
from runner.data.ring import Layout, Ring
from runner.data.storage import TensorStorage, name_of
from runner.spec import CheckpointError, Deferred, HooklineError, StateDict


class MemMapStorage(TensorStorage):
    """A ring of rows in files of the run's folder, one file per field, which only grow.

    Nothing that a checkpoint refers to is overwritten, so a checkpoint holds no rows: only how many there were, and
    digests of the files. What neither the ring nor a checkpoint that is kept needs any more is given back to the disk.

    Args:
        capacity: transitions kept, a multiple of N.
        run: the run's folder, or anything with such a ``path``; the files are in ``replay/`` there.
    """

    def __init__(self, capacity: int, keys: Sequence[NestedKey], run: Any, optional: Sequence[NestedKey] = ()) -> None:
        super().__init__(capacity, keys, optional=optional)
        self._run = run
        self._rings: dict[NestedKey, Ring] = {}
        self._total = 0
        self._calm_rows = -1
        self._in_checkpoints = 0  # so many of the rows may be needed by checkpoints
        self._has_published = False

    @property
    def folder(self) -> Path:
        """Where the files are."""
        if self._run is None:
            raise HooklineError("source.storage=memmap keeps its rows in the folder of a run, and there is none here")
        return Path(getattr(self._run, "path", self._run)).absolute() / "replay"

    def allocate(self, rows: Mapping[NestedKey, Tensor]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            journals = {key: self._open(key, is_new=True) for key in rows}
            self._allocate_over(journals, rows)
        except (JournalError, OSError) as error:
            raise HooklineError(f"there is no room for the replay rows: {error}") from error

    def _open(self, key: NestedKey, is_new: bool) -> Journal:
        if self.folder.is_symlink() or not self.folder.is_dir():
            raise JournalError(self.folder, "is not a folder")
        return Journal(self.folder / f"{name_of(key)}.rows", is_new)

    def _allocate_over(self, journals: Mapping[NestedKey, Journal], rows: Mapping[NestedKey, Tensor]) -> None:
        num_envs = next(iter(rows.values())).shape[1]
        layouts = {key: Layout(row.nbytes, self.capacity // num_envs) for key, row in rows.items()}
        self._rings = {key: Ring(journals[key], layout) for key, layout in layouts.items()}
        super().allocate(rows)

    def _make_field(self, key: NestedKey, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(self._rings[key].region.buffer, dtype=dtype, count=prod(shape)).view(shape)

    def _write(self, batch: Any, start: int, stop: int, offset: int) -> None:
        if stop <= self._calm_rows:
            super()._write(batch, start, stop, offset)
        else:
            self._write_across_chunks(batch, start, stop, offset)
        self._total += stop - start

    def _write_across_chunks(self, batch: Any, start: int, stop: int, offset: int) -> None:
        rings = self._rings.values()
        try:
            for ring in rings:
                ring.open(stop)
            super()._write(batch, start, stop, offset)
            for ring in rings:
                ring.close(self._total // self.rows, stop)
        except (JournalError, OSError) as error:
            raise HooklineError(f"there is no room for the replay rows: {error}") from error
        self._calm_rows = min(ring.calm_rows for ring in rings)
        for ring in rings:  # rows that came and went between two checkpoints
            ring.journal.release(ring.layout.offset(self._in_checkpoints), ring.layout.window(self._total)[0])

    def state_dict(self) -> StateDict:
        if not self.fields:
            return {"journal": {}}
        total = self._in_checkpoints = self._total
        tails = {key: ring.tail(total) for key, ring in self._rings.items()}
        journal = Deferred(partial(self._commit, total, tails), self._release_between, self._mark_name, total)
        return {"capacity": self.capacity, "num_envs": self.num_envs, "total": total, "journal": journal}

    @property
    def _mark_name(self) -> str:
        """Those of a module, whose place is not the run's folder, are its own: others have come to other totals."""
        return f"{getattr(self._run, 'place', '')}/replay".lstrip("/")

    def _commit(self, total: int, tails: Mapping[NestedKey, tuple[bytes, int]]) -> StateDict:
        """Bring the first ``total`` rows to the disk; by a checkpoint's writer, while the ring is filled further."""
        if not self._has_published:
            for folder in (self.folder, self.folder.parent):
                sync_names(folder)
        committed = {}
        for key, ring in self._rings.items():
            ring.journal.write(*tails[key])
            digests = ring.journal.commit(*ring.layout.window(total))
            field = self.fields[key]
            dtype, shape = str(field.dtype).removeprefix("torch."), list(field.shape[2:])
            committed[name_of(key)] = {"dtype": dtype, "shape": shape, "blocks": digests}
        return committed

    def _release_between(self, totals: list[int]) -> None:
        """Give back what none of the checkpoints needs that there are now, which were made at these ``totals``."""
        self._has_published = True
        for ring in self._rings.values():
            end = 0
            for begin, next_end in map(ring.layout.window, totals):
                ring.journal.release(end, begin)
                end = max(end, next_end)

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: where the files do not hold what they held then, or the ring has another size.
        """
        if "journal" not in state:
            self.fields = {}  # begun anew: the files hold other rows in these places
            super().load_state_dict(state)
            return
        committed = state["journal"].work() if isinstance(state["journal"], Deferred) else state["journal"]
        if not committed:
            self.clear()
            return
        self.keys = self._keys_saved(committed)
        try:
            self._go_on(state, {key: read_saved(committed[name_of(key)]) for key in self.keys})
        except (JournalError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"its replay rows cannot be used: {error}") from error

    def _go_on(self, state: StateDict, saved: Mapping[NestedKey, "Saved"]) -> None:
        num_envs, total = state["num_envs"], state["total"]
        if state["capacity"] != self.capacity:
            raise ValueError(f"they are of source.capacity={state['capacity']!r:.20}, which cannot be changed")
        if not (type(num_envs) is type(total) is int and num_envs > 0 and 0 < total < 2**48):
            raise ValueError(f"{total!r:.20} rows of {num_envs!r:.20} environments")
        self.check(num_envs, 1)
        journals = {key: self._open(key, is_new=False) for key in saved}
        for key, one in saved.items():
            layout = Layout(num_envs * one.nbytes, self.capacity // num_envs)
            journals[key].verify(*layout.window(total), one.digests)
        rows = {key: torch.empty((1, num_envs, *one.shape), dtype=one.dtype) for key, one in saved.items()}
        self._allocate_over(journals, rows)
        for ring in self._rings.values():
            ring.restore(total)
        self._set_total(total)

    def clear(self) -> None:
        super().clear()
        self._rings, self._total, self._in_checkpoints = {}, 0, 0
        self._calm_rows, self._has_published = -1, False

    def _set_total(self, total: int) -> None:
        self._total = self._in_checkpoints = total
        self.cursor, self.filled_rows = total % self.rows, min(total, self.rows)
        self._calm_rows, self._has_published = -1, False

    def _fill(self, saved: Mapping[NestedKey, Tensor], cursor: int, filled_rows: int) -> None:
        """Every row gets the place it would have in a ring in memory, so the same ones are drawn from either."""
        self._set_total(cursor if filled_rows == self.rows else 0)
        batch = {key: rows.transpose(0, 1) for key, rows in saved.items()}
        if filled_rows == self.rows:
            self._write(batch, cursor, self.rows, cursor)
            if cursor:
                self._write(batch, 0, cursor, 0)
        else:
            self._write(batch, 0, filled_rows, 0)
        self._set_total(self._total)


class Saved(NamedTuple):
    """What a checkpoint says about one file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    digests: list[str]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def read_saved(entry: Mapping[str, Any]) -> Saved:
    """The checked entry of one file; ``ValueError``, ``KeyError`` or ``TypeError`` for any other."""
    shape, digests = entry["shape"], entry["blocks"]
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 < size < 2**32 for size in shape):
        raise ValueError(f"no row has the shape {shape!r:.40}")
    return Saved(DTYPES[entry["dtype"]], tuple(shape), list(digests))
