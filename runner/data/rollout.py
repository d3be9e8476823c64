"""The collected batch itself as a source: some epochs over it, in minibatches, and then it is forgotten."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.minibatches import new_order
from runner.spec import (
    NEXT_ACTION_MASK,
    NEXT_EPISODE_LENGTH,
    NEXT_EPISODE_RETURN,
    NEXT_OBSERVATION,
    TRAJ_IDS,
    StateDict,
)
from runner.types import NonNegativeInt, PositiveInt

LEFT_OUT: tuple[NestedKey, ...] = (
    *(NEXT_ACTION_MASK, NEXT_EPISODE_LENGTH, NEXT_EPISODE_RETURN, NEXT_OBSERVATION, TRAJ_IDS),
)
"""What no loss asks for, once advantages are known."""


class Rollout:
    """Each collected batch ``[N, T]`` is gone through ``epochs`` times, in a new random order each time.

    The rule is that of :mod:`runner.minibatches`, with minibatches that divide the batch.

    Sub-batches are ``[B]``, or ``[B / L, L]`` of whole sequences, which begin where the recorded memory stands. All of
    them are views of one memory that the next epoch overwrites.

    Args:
        generator: of the orders.
        epochs: over each collected batch.
        batch_size: env steps of a sub-batch, a divisor of those of a batch; ``None`` for all of them.
        sequence_length: steps of a sequence, a divisor of ``T``; ``None`` for single steps.
        warmup: env steps before the first update.
    """

    def __init__(
        self,
        generator: torch.Generator,
        epochs: PositiveInt = 1,
        batch_size: PositiveInt | None = None,
        sequence_length: PositiveInt | None = None,
        device: str = "cpu",
        warmup: NonNegativeInt = 0,
    ) -> None:
        self.generator, self.epochs, self.batch_size = generator, epochs, batch_size
        self.length, self.device, self.warmup = sequence_length or 0, device, warmup
        self._flat: dict[NestedKey, Tensor] = {}
        self._shuffled: dict[NestedKey, Tensor] = {}
        self._sub_batches: list[TensorDict] = []
        self._next, self._count = 0, 1

    def check(self, num_envs: int, steps: int) -> None:
        """Raise ``ValueError`` if batches ``[num_envs, steps]`` cannot be divided as asked for."""
        total, length = num_envs * steps, self.length or 1
        if steps % length:
            raise ValueError(f"source.sequence_length={length} is no divisor of the {steps} steps of an environment")
        if self.batch_size is not None and (total % self.batch_size or self.batch_size % length):
            whose = f"collector.frames_per_batch={total}"
            many = f" and a multiple of source.sequence_length={length}" if length > 1 else ""
            raise ValueError(f"source.batch_size={self.batch_size} must be a divisor of {whose}{many}")
        self._count = total // (self.batch_size or total)

    def extend(self, batch: TensorDictBase) -> None:
        """Take a batch ``[N, T]``, which has to stay as it is until the updates are done."""
        num_envs, steps = batch.batch_size
        self.check(num_envs, steps)
        entries: dict[NestedKey, Any] = dict(batch.items(include_nested=True, leaves_only=True))
        self._flat = {key: self._rows(value).to(self.device) for key, value in entries.items() if key not in LEFT_OUT}
        self._next = 0
        if not self._fits():
            self._make_sub_batches(num_envs * steps)

    def _rows(self, values: Tensor) -> Tensor:
        """``[N, T, ...]`` as rows of steps, or of sequences ``[R, L, ...]``; a view where memory is ``[T, N]``."""
        if not self.length:
            return values.transpose(0, 1).flatten(0, 1)
        return values.unflatten(1, (-1, self.length)).flatten(0, 1)

    def _fits(self) -> bool:
        made = {key: (one.shape, one.dtype) for key, one in self._shuffled.items()}
        return made == {key: (one.shape, one.dtype) for key, one in self._flat.items()}

    def _make_sub_batches(self, total: int) -> None:
        size = (self.batch_size or total) // (self.length or 1)
        self._shuffled = {
            key: torch.empty_like(one, memory_format=torch.contiguous_format) for key, one in self._flat.items()
        }
        self._sub_batches = []
        for first in range(0, total // (self.length or 1), size):
            shape = [size, self.length] if self.length else [size]
            sub_batch = TensorDict(batch_size=shape, device=self.device)
            for key, rows in self._shuffled.items():
                sub_batch.set(key, rows[first : first + size])
            self._sub_batches.append(sub_batch)

    def optim_steps(self) -> int:
        return self.epochs * self._count

    def sample(self, batch: TensorDictBase | None = None) -> TensorDict:
        """The next sub-batch; each epoch begins with a new order."""
        at = self._next % len(self._sub_batches)
        if at == 0:
            self._shuffle()
        self._next += 1
        return self._sub_batches[at]

    def _shuffle(self) -> None:
        rows = len(next(iter(self._flat.values())))
        order = new_order(rows, self.generator).to(self.device)
        for key, into in self._shuffled.items():
            torch.index_select(self._flat[key], 0, order, out=into)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        """Nothing to do: all steps are alike."""

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.set_state(state["generator"])
