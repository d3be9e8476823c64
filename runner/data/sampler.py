"""Which stored transitions an update sees, where all are alike."""

import torch
from torch import Tensor

from runner.data.storage import TensorStorage
from runner.spec import CheckpointError, StateDict


class EqualSampler:
    """What samplers share that treat all transitions alike."""

    needs: tuple[str, ...] = ()
    length = 0
    weight: Tensor | None = None

    def extended(self, row: int, steps: int) -> None:
        """``steps`` rows from ``row`` on, round the ring, are new ones."""

    def update_priority(self, priority: Tensor) -> None:
        """``priority`` ``[B]`` is of what was drawn last: nothing to do."""


class UniformSampler(EqualSampler):
    """Every transition equally likely, drawn with replacement."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._indices = torch.empty(0, dtype=torch.int64)

    def sample(self, size: int, batch_size: int) -> Tensor:
        """``[B]`` indices below ``size``; the tensor is overwritten by the next call."""
        if len(self._indices) != batch_size:
            self._indices = torch.empty(batch_size, dtype=torch.int64)
        return torch.randint(0, size, (batch_size,), generator=self.generator, out=self._indices)

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.set_state(state["generator"])


class WithoutReplacementSampler(EqualSampler):
    """Every place of what is stored once in each epoch, in random order; what comes in later joins the next epoch.

    A place that is filled anew in mid-epoch is drawn with what is in it then. A sub-batch may end one epoch and begin
    the next.
    """

    def __init__(self, storage: TensorStorage, generator: torch.Generator) -> None:
        self.storage, self.generator = storage, generator
        self._left = torch.empty(0, dtype=torch.int64)

    def sample(self, size: int, batch_size: int) -> Tensor:
        """``[B]`` indices below ``size``."""
        parts = [self._left[:batch_size]]
        self._left = self._left[batch_size:]
        while (missing := batch_size - sum(map(len, parts))) > 0:
            order = torch.randperm(size, generator=self.generator)
            parts.append(order[:missing])
            self._left = order[missing:]
        return torch.cat(parts)

    def state_dict(self) -> StateDict:
        left = self._left.clone() if len(self._left) else None
        return {"generator": self.generator.get_state(), "left": left, "capacity": self.storage.capacity}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.set_state(state["generator"])
        left = state.get("left")
        if left is None or state["capacity"] != self.storage.capacity:  # then every row has another place
            left = torch.empty(0, dtype=torch.int64)
        if len(left) and not 0 <= int(left.min()) <= int(left.max()) < len(self.storage):
            raise CheckpointError(f"its epoch goes on beyond the {len(self.storage)} transitions in the replay")
        self._left = left
