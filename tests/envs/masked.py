"""An environment some of whose actions cannot be taken, and that does not forgive it."""

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS = 5


class Doors(gymnasium.Env):
    """Five doors, of which some are open, as seed and step say; to walk into a closed one is an error.

    The observation is noise; the reward is the number of the door. Episodes of 7 steps, whose last observation has no
    open door at all.
    """

    def __init__(self, length=7, end="terminated", says_by="method"):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)
        self.length, self.end, self.says_by = length, end, says_by

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen()

    def step(self, action):
        if not self.open[action]:
            raise RuntimeError(f"door {action} is closed")
        self.steps += 1
        observation, info = self._seen()
        is_over = self.steps >= self.length
        ends = (is_over, False) if self.end == "terminated" else (False, is_over)
        return observation, float(action), *ends, info

    def _seen(self):
        self.open = self.np_random.random(ACTIONS) < 0.5
        self.open[self.np_random.integers(ACTIONS)] = True
        if self.steps >= self.length:
            self.open[:] = False
        return self.np_random.normal(size=3).astype(np.float32), {"action_mask": self.open.astype(np.int8)}


class SaysSo(Doors):
    """The same, which says itself which doors are open."""

    def action_masks(self):
        return self.open
