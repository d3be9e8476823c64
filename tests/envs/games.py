"""Small games of pictures: one with lives, and one that is learnt in a few thousand steps."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Lives(gymnasium.Env):
    """Three lives of 4 steps each; pixel [0, 0] counts steps of the game, [0, 1] is drawn from the seed, [0, 2] lives.

    The reward of a step is the number of steps of the game so far.
    """

    def __init__(self, lives: int = 3, span: int = 4) -> None:
        self.observation_space = spaces.Box(0, 255, (2, 3), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.all_lives, self.span = lives, span
        self.lives, self.steps = lives, 0
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "FIRE", "RIGHT"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.lives, self.steps, self.actions = self.all_lives, 0, []
        return self._picture(), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        self.lives -= self.steps % self.span == 0
        return self._picture(), float(self.steps), self.lives == 0, False, {}

    def _picture(self):
        picture = np.zeros((2, 3), np.uint8)
        picture[0] = self.steps, int(self.np_random.integers(256)), self.lives
        return picture


class Flicker(gymnasium.Env):
    """Draws a thing in every other frame only; ends after ``length`` steps. Pixel [0, 0] is 200 in even frames."""

    def __init__(self, length: int = 6) -> None:
        self.observation_space = spaces.Box(0, 255, (1, 2), np.uint8)
        self.action_space = spaces.Discrete(2)
        self.length = length
        self.frame = np.zeros((1, 2), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.frame[:] = 0
        return self.frame, {}

    def step(self, action):
        self.steps += 1
        self.frame[0] = 200 * (self.steps % 2 == 0), self.steps  # into the same memory
        return self.frame, 1.0, self.steps == self.length, False, {}


class Catch(gymnasium.Env):
    """A ball falls through 10 rows of 6 pixels (in colour), a paddle moves left or right under it: 1 if it is caught.

    At random, half of the pictures of the ball being what they are, the return is about -0.5; the best is 1.
    """

    def __init__(self, rows: int = 10, columns: int = 6) -> None:
        self.rows, self.columns = rows, columns
        self.observation_space = spaces.Box(0, 255, (rows, columns, 3), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball, self.paddle = [0, int(self.np_random.integers(self.columns))], int(self.columns // 2)
        return self._picture(), {}

    def step(self, action):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.columns - 1)
        self.ball[0] += 1
        is_over = self.ball[0] == self.rows - 1
        reward = (1.0 if self.ball[1] == self.paddle else -1.0) if is_over else 0.0
        return self._picture(), reward, is_over, False, {}

    def _picture(self):
        picture = np.zeros((self.rows, self.columns, 3), np.uint8)
        picture[self.ball[0], self.ball[1]] = 255
        picture[-1, self.paddle] = (255, 128, 0)
        return picture
