"""Which stored transitions an update sees."""

import torch
from torch import Tensor

from runner.spec import StateDict


class UniformSampler:
    """Every transition equally likely, drawn with replacement.

    A sampler remembers what it drew last: whoever says how surprising that was need not say which it was.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._indices = torch.empty(0, dtype=torch.int64)

    def sample(self, size: int, batch_size: int) -> Tensor:
        """``[B]`` indices below ``size``; the tensor is overwritten by the next call."""
        if len(self._indices) != batch_size:
            self._indices = torch.empty(batch_size, dtype=torch.int64)
        return torch.randint(0, size, (batch_size,), generator=self.generator, out=self._indices)

    def update_priority(self, priority: Tensor) -> None:
        """``priority`` ``[B]`` is of what was drawn last; all are alike here: nothing to do."""

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.set_state(state["generator"])
