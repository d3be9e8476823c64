"""The simplest family of tasks in which an agent has to find out which one it was given."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from runner.types import PositiveInt


class TwoArmedBandit(gymnasium.Env):
    """``pulls`` of two arms; each pays 1 with its own chance, ``first`` or ``second``, else 0.

    The observation ``[1]`` says nothing (0): what arms are worth has to be remembered; see ``PreviousStep``.
    """

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, pulls: PositiveInt = 20, first: float = 0.5, second: float = 0.5) -> None:
        self.pulls, self.first, self.second = pulls, first, second
        self._left = pulls

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = self.pulls
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        chance = self.second if action else self.first
        reward = float(self.np_random.random() < chance)
        self._left -= 1
        return np.zeros(1, np.float32), reward, self._left == 0, False, {}
