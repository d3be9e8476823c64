"""Where transitions are kept: preallocated tensors ``[rows, N, ...]``, oldest rows overwritten first."""

import logging
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.spec import CheckpointError, StateDict

log = logging.getLogger(__name__)


class TensorStorage:
    """A ring of rows; a row holds one step of each of the ``N`` environments, in the order of collection.

    Allocated at the first ``extend``, when shapes are known. ``flat`` shows a field as ``[rows * N, ...]``.

    Args:
        capacity: transitions kept, a multiple of N.
        keys: what is kept of a batch.
        optional: what is kept besides if the first batch has it.
    """

    def __init__(
        self, capacity: int, keys: Sequence[NestedKey], device: str = "cpu", optional: Sequence[NestedKey] = ()
    ) -> None:
        self.capacity, self.keys, self.device = capacity, tuple(keys), device
        self._required, self._optional = self.keys, tuple(optional)
        self.num_envs = 0
        self.cursor = 0
        self.filled_rows = 0
        self.fields: dict[NestedKey, Tensor] = {}
        self.flat: dict[NestedKey, Tensor] = {}
        self._arrays: dict[NestedKey, Any] = {}
        self._targets: list[tuple[NestedKey, Any]] = []
        self._sources: dict[NestedKey, tuple[Tensor | None, Any]] = {}

    def __len__(self) -> int:
        """Transitions held."""
        return self.filled_rows * self.num_envs

    @property
    def rows(self) -> int:
        return self.capacity // self.num_envs

    def check(self, num_envs: int, steps: int) -> None:
        """Raise ``ValueError`` if batches ``[num_envs, steps]`` do not fit."""
        if self.capacity % num_envs:
            raise ValueError(f"source.capacity={self.capacity} is not a multiple of the {num_envs} environments")
        if num_envs * steps > self.capacity:
            raise ValueError(f"source.capacity={self.capacity} is less than a batch of {num_envs * steps} env steps")

    def extend(self, batch: TensorDictBase) -> None:
        """Copy a batch ``[N, T]`` in."""
        steps = batch.batch_size[1]
        if not self.fields or steps > self.rows:
            self.check(*batch.batch_size)
        if not self.fields:
            self.keys = self.keys_in(batch)
            self.allocate({key: batch.get(key)[:, :1].transpose(0, 1) for key in self.keys})
        start = self.cursor
        stop = start + steps
        if stop <= self.rows:
            self._write(batch, start, stop, 0)
        else:  # in two parts, at the end of the ring and at its beginning
            self._write(batch, start, self.rows, 0)
            self._write(batch, 0, stop - self.rows, self.rows - start)
        self.cursor = stop % self.rows
        self.filled_rows = min(self.filled_rows + steps, self.rows)

    def keys_in(self, batch: TensorDictBase) -> tuple[NestedKey, ...]:
        """What would be kept if ``batch`` were the first one."""
        return *self._required, *(key for key in self._optional if batch.get(key, None) is not None)

    def _keys_saved(self, names: Container[str]) -> tuple[NestedKey, ...]:
        return *self._required, *(key for key in self._optional if name_of(key) in names)

    def _write(self, batch: Any, start: int, stop: int, offset: int) -> None:
        """Copy the batch's steps from ``offset`` on to the rows from ``start`` to ``stop``."""
        steps = slice(offset, offset + stop - start)
        for key, target in self._targets:
            tensor = batch.get(key)
            known, source = self._sources[key]
            if tensor is not known:  # collectors fill the same memory again and again
                source = tensor.detach().transpose(0, 1)
                if not isinstance(target, Tensor):
                    source, tensor = source.cpu().numpy(), tensor if tensor.device.type == "cpu" else None
                self._sources[key] = tensor, source
            target[start:stop] = source[steps]

    def allocate(self, rows: Mapping[NestedKey, Tensor]) -> None:
        """Make room for ``capacity`` transitions like these, each ``[1, N, ...]``."""
        self.num_envs = next(iter(rows.values())).shape[1]
        for key, row in rows.items():
            field = self._make_field(key, (self.rows, *row.shape[1:]), row.dtype)
            self.fields[key], self.flat[key] = field, field.view(self.capacity, *row.shape[2:])
        self._arrays = {key: _as_array(flat) for key, flat in self.flat.items()}
        self._targets = [(key, _as_array(field)) for key, field in self.fields.items()]
        self._sources = dict.fromkeys(self.fields, (None, None))

    def gather(self, key: NestedKey, indices: Tensor, into: Tensor) -> None:
        """Copy the rows of one field at flat ``indices`` ``[B]``, which must be there, to ``into`` ``[B, ...]``."""
        array = self._arrays[key]
        if isinstance(array, Tensor):
            torch.index_select(array, 0, indices, out=into)
        else:  # in half of torch's time
            array.take(indices.numpy(), axis=0, out=into.numpy(), mode="clip")

    def _make_field(self, key: NestedKey, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def state_dict(self) -> StateDict:
        return {
            "cursor": self.cursor,
            "fields": {name_of(key): field[: self.filled_rows] for key, field in self.fields.items()},
        }

    def load_state_dict(self, state: StateDict) -> None:
        if "journal" in state:
            raise CheckpointError("its replay rows are in files: it goes on with source.storage=memmap only")
        self.keys = self._keys_saved(state["fields"])
        saved = {key: state["fields"][name_of(key)] for key in self.keys if name_of(key) in state["fields"]}
        if not saved:
            self.clear()
            return
        if not self.fields:
            self.allocate({key: field[:1] for key, field in saved.items()})
        cursor, filled_rows = state["cursor"], len(next(iter(saved.values())))
        if filled_rows != self.rows:  # not full, or saved with another capacity: oldest first, the newest stay
            if filled_rows > self.rows:
                held, kept = filled_rows * self.num_envs, self.rows * self.num_envs
                words = "of the %s transitions in the replay only the %s newest are kept: source.capacity=%d"
                log.warning(words, f"{held:,}", f"{kept:,}", self.capacity)
            saved = {key: field.roll(-cursor, 0)[-self.rows :] for key, field in saved.items()}
            filled_rows = min(filled_rows, self.rows)
            cursor = filled_rows % self.rows
        self._fill(saved, cursor, filled_rows)

    def clear(self) -> None:
        """Forget every row, and the room for them: as many environments as there may be next fill it anew."""
        self.cursor = self.filled_rows = self.num_envs = 0
        self.fields, self.flat, self._arrays, self._targets, self._sources = {}, {}, {}, [], {}
        self.keys = self._required

    def _fill(self, saved: Mapping[NestedKey, Tensor], cursor: int, filled_rows: int) -> None:
        self.cursor, self.filled_rows = cursor, filled_rows
        for key, field in saved.items():
            self.fields[key][:filled_rows] = field


def _as_array(field: Tensor) -> np.ndarray | Tensor:
    """The field's memory as numpy sees it, where it can: for what little a batch holds it is five times as fast."""
    try:
        return field.numpy()
    except TypeError:  # not on the CPU, or of a type that only torch has
        return field


def name_of(key: NestedKey) -> str:
    """A key as one word, for example ``next.reward``."""
    return key if isinstance(key, str) else ".".join(map(str, key))
