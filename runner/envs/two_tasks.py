"""Two tasks in one world, for runs with a module for each."""

from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces

ID = "hookline/TwoTasks-v0"
Task = Literal["left", "right"]
THRUST, FASTEST = 0.02, 0.1
GOAL_REWARD, COST = 10.0, 0.2
START = 0.3
MOST_STEPS = 100


class TwoTasks(gymnasium.Env):
    """A cart in a corridor from -1 to 1, which is to come to the end that ``task`` names.

    The observation is position and velocity, the velocity times 10; actions push to the left, not at all, or to the
    right by 0.02 a step, up to a velocity of 0.1. Each step costs 0.2, the one into the goal pays 10 besides; an
    episode begins at rest between -0.3 and 0.3, and is cut after 100 steps. Pushing towards the goal all the time is
    optimal: after any number of steps no other way is farther or faster. The wall at the other end stops the cart.
    """

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, task: Task = "left") -> None:
        if task not in get_args(Task):
            raise ValueError(f"env.kwargs.task={task}: there are {' and '.join(get_args(Task))}")
        self.goal = -1.0 if task == "left" else 1.0
        self._position = self._velocity = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._position, self._velocity = float(self.np_random.uniform(-START, START)), 0.0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._velocity = min(max(self._velocity + THRUST * (int(action) - 1), -FASTEST), FASTEST)
        self._position += self._velocity
        if abs(self._position) >= 1.0:
            self._position, self._velocity = (1.0 if self._position > 0 else -1.0), 0.0
        is_there = self._position == self.goal
        return self._observe(), GOAL_REWARD * is_there - COST, is_there, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self._position, self._velocity / FASTEST], np.float32)


def register() -> None:
    """Let gymnasium know the environment by its id."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=f"{__name__}:TwoTasks", max_episode_steps=MOST_STEPS)
