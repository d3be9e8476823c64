"""Families of environments: another one of them in each episode."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from runner.spec import ConfigError

STREAM = 0x7A5C
"""Keeps what is drawn of a task apart from what the environment itself draws with the same seed."""


class SampledTask(gymnasium.Wrapper):
    """Sets attributes of the environment at the beginning of each episode, drawn uniformly by the episode's own seed.

    Args:
        ranges: by attribute of the innermost environment, the lowest and the highest value.
    """

    def __init__(self, env: gymnasium.Env, ranges: Mapping[str, Sequence[float]]) -> None:
        super().__init__(env)
        self.ranges = dict(ranges)
        for name, (low, high) in self.ranges.items():
            if not hasattr(env.unwrapped, name):
                close = get_close_matches(name, vars(env.unwrapped), 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"env.sample.{name}: a {type(env.unwrapped).__name__} has no such attribute{hint}")
            if low > high:
                raise ConfigError(f"env.sample.{name}: [{low:g}, {high:g}] is no range from a lower to a higher value")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        entropy = [STREAM, seed] if seed is not None else None
        generator = np.random.default_rng(entropy)
        for name, (low, high) in self.ranges.items():
            setattr(self.env.unwrapped, name, float(generator.uniform(low, high)))
        return self.env.reset(seed=seed, options=options)


class PreviousStep(gymnasium.Wrapper):
    """Appends the action before, one-hot, and its reward to a vector observation (Duan et al. 2016, RL^2); zeros first.

    With a recurrent policy, an agent can so learn within an episode what the episode is about.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space, actions = env.observation_space, env.action_space
        is_fit = isinstance(space, spaces.Box) and len(space.shape) == 1 and isinstance(actions, spaces.Discrete)
        if not is_fit:
            raise ValueError(f"needs vectors as observations and discrete actions; there are {space} and {actions}")
        self._actions = int(actions.n)  # type: ignore[attr-defined]
        low = np.concatenate([space.low, np.zeros(self._actions), [-np.inf]])  # type: ignore[attr-defined]
        high = np.concatenate([space.high, np.ones(self._actions), [np.inf]])  # type: ignore[attr-defined]
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with(observation, None, 0.0), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with(observation, int(action), float(reward)), float(reward), terminated, truncated, info

    def _with(self, observation: np.ndarray, action: int | None, reward: float) -> np.ndarray:
        before = np.zeros(self._actions + 1, np.float32)
        before[-1] = reward
        if action is not None:
            before[action] = 1.0
        return np.concatenate([observation, before], dtype=np.float32)
