"""Sequences of consecutive steps, for losses that look at more than one."""

import torch
from torch import Tensor

from runner.data.sampler import EqualSampler
from runner.data.storage import TensorStorage
from runner.data.windows import windows
from runner.spec import NEXT_DONE, HooklineError, StateDict

ROUNDS = 4
CHUNK = 2**16


class SliceSampler(EqualSampler):
    """``length`` consecutive steps of one environment, each run of that many in one episode equally likely.

    No slice goes on after an end of an episode, of either kind, or after the newest row; one may end with either. What
    is left of shorter episodes is never drawn. ``batch_size`` steps are ``batch_size / length`` slices.
    """

    def __init__(self, storage: TensorStorage, generator: torch.Generator, length: int) -> None:
        self.storage, self.generator, self.length = storage, generator, length

    def sample(self, size: int, batch_size: int) -> Tensor:
        """``[B]`` indices, slice after slice."""
        count = batch_size // self.length
        found = torch.empty(0, self.length, dtype=torch.int64, device=self.storage.device)
        for _ in range(ROUNDS):  # most starts will do
            found = torch.cat([found, self._whole(self._draw(size, 2 * count))])
            if len(found) >= count:
                return found[:count].flatten()
        starts = self._all_starts(size)
        return self._whole(starts[self._draw(len(starts), count)]).flatten()

    def _draw(self, size: int, count: int) -> Tensor:
        return torch.randint(0, size, (count,), generator=self.generator).to(self.storage.device)

    def _whole(self, starts: Tensor) -> Tensor:
        """The flat rows ``[B, length]`` of those slices that are in one episode."""
        rows = windows(self.storage, starts, self.length)
        ends = self.storage.flat[NEXT_DONE][rows[:, :-1].clamp(min=0)]
        return rows[(rows[:, -1] >= 0) & ~ends.any(dim=1)]

    def _all_starts(self, size: int) -> Tensor:
        everything = torch.arange(size, device=self.storage.device)
        starts = torch.cat([self._whole(some)[:, 0] for some in everything.split(CHUNK)])
        if not len(starts):
            raise HooklineError(
                f"no episode has source.slice_length={self.length} steps among the {size:,} transitions stored: "
                "take a smaller one, or a larger source.warmup"
            )
        return starts

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.set_state(state["generator"])
