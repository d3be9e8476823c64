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


class Corridor(gymnasium.Env):
    """Eight rooms in a row; in each, two of sixteen actions, never the same, go on and back; the rest only take time.

    The observation is the room, one-hot; to leave the last one pays 10, each step costs 0.1, and 50 steps are all.
    """

    rooms, actions = 8, 16

    def __init__(self, is_told=True):
        self.observation_space = spaces.Box(0, 1, (self.rooms,), np.float32)
        self.action_space = spaces.Discrete(self.actions)
        if is_told:
            self.action_masks = self._open

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.room, self.steps = 0, 0
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        on, back = self._ways()
        self.room = max(self.room + (action == on) - (action == back), 0)
        is_out = self.room == self.rooms
        return self._seen(), 10.0 * is_out - 0.1, is_out, self.steps >= 50, {}

    def _ways(self):
        return 5 * self.room % self.actions, (5 * self.room + 8) % self.actions

    def _open(self):
        mask = np.zeros(self.actions, bool)
        mask[list(self._ways())] = True
        return mask

    def _seen(self):
        return np.eye(self.rooms + 1, dtype=np.float32)[self.room, : self.rooms]
