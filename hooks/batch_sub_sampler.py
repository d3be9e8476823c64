"""The hook that lets each update see a random part of what was collected."""

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from runner.hook import Hook
from runner.seeding import Streams
from runner.spec import MASK, NEXT_DONE, ConfigError, StateDict
from runner.types import Every, NonNegativeInt, PositiveInt, SubTrajectory


class BatchSubSampler(Hook):
    """Draws a new random part of the collected batch for each update.

    Single steps ``[batch_size]``, without replacement. Or stretches of one trajectory of a batch ``[N, T]``, as
    ``[batch_size // sub_traj_len, sub_traj_len]``, with replacement: every stretch without an episode's end before its
    last step and without invalid steps is equally likely, up to the one that ends with the last step of the batch.

    Args:
        batch_size: steps of all that is drawn for an update.
        sub_traj_len: steps of a stretch; -1 for single steps.
        min_sub_traj_len: where there is no stretch of that length, the longest there is will do, if it has this
            many steps; 0 to insist.
        streams: seed what is drawn.
    """

    point = "process_optim_batch"

    def __init__(
        self,
        batch_size: PositiveInt,
        sub_traj_len: SubTrajectory = -1,
        min_sub_traj_len: NonNegativeInt = 0,
        streams: Streams | None = None,
        every: Every | None = None,
    ) -> None:
        super().__init__(every)
        if sub_traj_len > batch_size or min_sub_traj_len > max(sub_traj_len, 0):
            raise ValueError(
                f"min_sub_traj_len={min_sub_traj_len} <= sub_traj_len={sub_traj_len} <= batch_size={batch_size} "
                "must hold: an update sees batch_size // sub_traj_len stretches"
            )
        self.batch_size, self.length, self.least = batch_size, sub_traj_len, min_sub_traj_len
        self.generator = streams.torch("sub_sampler") if streams else torch.Generator()

    def register(self, trainer: Any, name: str | None = None) -> None:
        if getattr(trainer.source, "needs", ()):
            raise ConfigError(
                f"{name or self.default_name()}: the source learns from the loss of all it has sampled, so no part of "
                "it can be drawn: set source.batch_size instead"
            )
        there = getattr(trainer.source, "batch_size", None)
        if there is not None and there < self.batch_size:
            raise ValueError(f"batch_sub_sampler.batch_size={self.batch_size} is more than source.batch_size={there}")
        super().register(trainer, name)

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        return self._steps(batch) if self.length <= 0 else self._stretches(batch)

    def _steps(self, batch: TensorDictBase) -> TensorDictBase:
        flat, mask = batch.reshape(-1), batch.get(MASK, None)
        valid = None if mask is None else mask.reshape(-1).nonzero().squeeze(-1)
        count = len(flat) if valid is None else len(valid)
        if count < self.batch_size:
            raise ConfigError(f"batch_sub_sampler: no {self.batch_size} of {count} collected steps can be drawn")
        drawn = torch.randperm(count, generator=self.generator)[: self.batch_size].to(batch.device)
        return flat[drawn if valid is None else valid[drawn]]

    def _stretches(self, batch: TensorDictBase) -> TensorDictBase:
        if batch.ndim < 2:
            raise ConfigError(f"batch_sub_sampler: stretches are of batches [N, T]; this one is {list(batch.shape)}")
        lengths = range(self.length, (self.least or self.length) - 1, -1)
        for length in lengths:
            starts = _starts(batch, length)
            if len(starts):
                count = max(self.batch_size // length, 1)
                drawn = torch.randint(len(starts), (count,), generator=self.generator).to(starts.device)
                row, start = starts[drawn].unbind(-1)
                return batch[row[:, None], start[:, None] + torch.arange(length, device=start.device)]
        raise ConfigError(f"batch_sub_sampler: no {lengths[-1]} steps of one trajectory are in the collected batch")

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])


def _starts(batch: TensorDictBase, length: int) -> Tensor:
    """``[K, 2]`` row and first step of each stretch of ``length`` steps that may be drawn."""
    shape = batch.shape[:2]
    mask, done = batch.get(MASK, None), batch.get(NEXT_DONE, None)
    invalid = torch.zeros(shape, dtype=torch.bool, device=batch.device) if mask is None else ~mask.reshape(shape)
    ended = torch.zeros_like(invalid) if done is None else done.reshape(shape)
    if shape[1] < length:
        return torch.empty(0, 2, dtype=torch.int64)
    spoilt = invalid.unfold(1, length, 1).any(-1)
    if length > 1:
        spoilt = spoilt | ended[:, :-1].unfold(1, length - 1, 1).any(-1)
    return (~spoilt).nonzero()
