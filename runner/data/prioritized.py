"""Prioritized experience replay: the more surprising a transition was, the more often it is drawn."""

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runner.data.storage import TensorStorage
from runner.data.sum_tree import Integers, SumTree
from runner.spec import TD_ERROR, CheckpointError, StateDict

SMALLEST = 1e-6
"""Added to every temporal-difference error, so that no transition is out of reach."""


class PrioritizedSampler:
    """Transition ``i`` is drawn in proportion to ``(|td_error_i| + 1e-6) ** alpha`` (Schaul et al. 2016, eq. 1).

    The line of all priorities is cut into B equal stretches, and one transition drawn from each (ibid., 3.3). New
    transitions get the largest priority so far. ``weight`` is ``(N p_i) ** -beta``, divided by the largest one of the
    sub-batch (ibid., 3.4). An error that is not finite leaves its transition with the largest priority so far.

    Args:
        alpha: how much errors matter, from 0 (uniform) to 1.
        beta: how much of the bias is corrected, now.
    """

    needs: tuple[str, ...] = (TD_ERROR,)
    length = 0

    def __init__(
        self, storage: TensorStorage, generator: torch.Generator, alpha: float, beta: Callable[[], float]
    ) -> None:
        self.storage, self.generator = storage, generator
        self.alpha, self.beta = alpha, beta
        self.tree = SumTree(storage.capacity)
        self.largest = 1.0
        self.weight: Tensor | None = torch.empty(0)
        self._drawn: Integers = np.empty(0, np.int64)

    def sample(self, size: int, batch_size: int) -> Tensor:
        """``[B]`` indices below ``size``."""
        points = torch.rand(batch_size, generator=self.generator, dtype=torch.float64).numpy()
        points += np.arange(batch_size)
        points /= batch_size
        self._drawn = self.tree.find(points)
        numbers = self.tree.numbers.take(self._drawn)
        self.weight = torch.from_numpy((numbers.min() / numbers) ** self.beta())
        return torch.from_numpy(self._drawn)

    def extended(self, row: int, steps: int) -> None:
        """``steps`` rows from ``row`` on, round the ring, are new ones."""
        num_envs, rows = self.storage.num_envs, self.storage.rows
        stop = min(row + steps, rows)
        self.tree.set_range(row * num_envs, stop * num_envs, self.largest)
        if row + steps > rows:
            self.tree.set_range(0, (row + steps - rows) * num_envs, self.largest)

    def update_priority(self, priority: Tensor) -> None:
        """``priority`` ``[B]`` are the errors of what was drawn last."""
        errors = priority.detach().cpu().numpy().ravel()
        if len(errors) != len(self._drawn):
            raise ValueError(f"{len(errors)} priorities for the {len(self._drawn)} transitions that were drawn last")
        numbers = (np.abs(errors, dtype=np.float64) + SMALLEST) ** self.alpha
        largest = float(numbers.max())
        if not isfinite(largest):
            numbers[~np.isfinite(numbers)] = self.largest
            largest = float(numbers.max())
        self.largest = max(self.largest, largest)
        self.tree.set(self._drawn, numbers)

    def state_dict(self) -> StateDict:
        held = self.tree.numbers[: len(self.storage)]
        return {
            "generator": self.generator.get_state(),
            "largest": self.largest,
            "alpha": self.alpha,
            "oldest_first": torch.from_numpy(np.roll(held, -self._oldest())) if len(held) else None,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from a state; one with more transitions than are kept now has the priorities of the newest."""
        self.generator.set_state(state["generator"])
        self.tree, self._drawn = SumTree(self.storage.capacity), self._drawn[:0]
        # Where another sampler was at work, all begin alike.
        self.largest = float(_scaled(state.get("largest", 1.0), state.get("alpha", 0.0), self.alpha))
        if not 0 < self.largest < float("inf"):
            raise CheckpointError(f"its largest priority is {self.largest}")
        held = len(self.storage)
        if not held:
            return
        saved = state.get("oldest_first")
        if saved is None:
            saved = torch.full((held,), self.largest, dtype=torch.float64)
        else:
            saved = _scaled(saved[-held:], state["alpha"], self.alpha)
        if saved.shape != (held,) or saved.dtype != torch.float64 or not ((saved > 0) & saved.isfinite()).all():
            raise CheckpointError(f"its priorities are not those of {held} transitions")
        self.tree.set(np.arange(held), saved.roll(self._oldest()).numpy())

    def _oldest(self) -> int:
        """Where the oldest transition is."""
        is_full = self.storage.filled_rows and self.storage.filled_rows == self.storage.rows
        return self.storage.cursor * self.storage.num_envs if is_full else 0


def _scaled(numbers: Any, before: float, alpha: float) -> Any:
    """Priorities to the power ``alpha`` that are given to the power ``before``; from 0 nothing can be told."""
    if before == alpha:
        return numbers
    return numbers ** (alpha / before) if before else numbers**0
