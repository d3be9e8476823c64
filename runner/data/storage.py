"""Where transitions are kept: preallocated tensors ``[rows, N, ...]``, oldest rows overwritten first."""

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.spec import StateDict


class TensorStorage:
    """A ring of rows; a row holds one step of each of the ``N`` environments, in the order of collection.

    Allocated at the first ``extend``, when shapes are known. ``flat`` shows a field as ``[rows * N, ...]``.

    Args:
        capacity: transitions kept, a multiple of N.
    """

    def __init__(self, capacity: int, keys: Sequence[NestedKey], device: str = "cpu") -> None:
        self.capacity, self.keys, self.device = capacity, tuple(keys), device
        self.num_envs = 0
        self.cursor = 0
        self.filled_rows = 0
        self.fields: dict[NestedKey, Tensor] = {}
        self.flat: dict[NestedKey, Tensor] = {}

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
        if not self.fields or batch.shape[1] > self.rows:
            self.check(*batch.shape)
        if not self.fields:
            self._allocate({key: batch.get(key)[:, :1].transpose(0, 1) for key in self.keys})
        steps = batch.shape[1]
        for start, stop, offset in self._spans(steps):
            for key, field in self.fields.items():
                field[start:stop] = batch.get(key).transpose(0, 1)[offset : offset + stop - start]
        self.cursor = (self.cursor + steps) % self.rows
        self.filled_rows = min(self.filled_rows + steps, self.rows)

    def _spans(self, steps: int) -> list[tuple[int, int, int]]:
        """Where ``steps`` new rows go: ``(start, stop, offset in the batch)``, in two parts at the end of the ring."""
        first = min(steps, self.rows - self.cursor)
        spans = [(self.cursor, self.cursor + first, 0)]
        return spans if first == steps else [*spans, (0, steps - first, first)]

    def _allocate(self, rows: dict[NestedKey, Tensor]) -> None:
        """Make room for ``capacity`` transitions like these, each ``[1, N, ...]``."""
        self.num_envs = next(iter(rows.values())).shape[1]
        for key, row in rows.items():
            self.fields[key] = torch.zeros((self.rows, *row.shape[1:]), dtype=row.dtype, device=self.device)
            self.flat[key] = self.fields[key].view(self.capacity, *row.shape[2:])

    def state_dict(self) -> StateDict:
        return {
            "cursor": self.cursor,
            "fields": {_name(key): field[: self.filled_rows] for key, field in self.fields.items()},
        }

    def load_state_dict(self, state: StateDict) -> None:
        saved = {key: state["fields"][_name(key)] for key in self.keys if _name(key) in state["fields"]}
        if not saved:
            return
        if not self.fields:
            self._allocate({key: field[:1] for key, field in saved.items()})
        self.cursor, self.filled_rows = state["cursor"], len(next(iter(saved.values())))
        if self.filled_rows != self.rows:  # not full, or saved with another capacity: oldest first, the newest stay
            saved = {key: field.roll(-self.cursor, 0)[-self.rows :] for key, field in saved.items()}
            self.filled_rows = min(self.filled_rows, self.rows)
            self.cursor = self.filled_rows % self.rows
        for key, field in saved.items():
            self.fields[key][: self.filled_rows] = field


def _name(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(map(str, key))
