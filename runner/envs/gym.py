"""One gymnasium environment: made, wrapped once, and described."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit

from runner.spec import ConfigError, EnvSpec
from runner.types import Factory


class FrameSkip(gymnasium.Wrapper):
    """Repeats each action ``skip`` times, adds up the rewards, and stops early where the episode ends."""

    def __init__(self, env: gymnasium.Env, skip: int) -> None:
        super().__init__(env)
        self.skip = skip

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.skip):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def make_env(
    id: str, kwargs: Mapping[str, Any], make: Factory | None, max_episode_steps: int | None, frame_skip: int
) -> gymnasium.Env:
    """Make one environment by gymnasium id, by ``module:Id``, or by calling ``make``.

    Observations that are no boxes are flattened into one vector (a discrete one becomes one-hot).
    """
    env = make() if make is not None else _make_by_id(id, kwargs, max_episode_steps)
    if make is not None and max_episode_steps is not None:
        env = TimeLimit(env, max_episode_steps)
    if not isinstance(env.observation_space, spaces.Box):
        env = FlattenObservation(env)
    return FrameSkip(env, frame_skip) if frame_skip > 1 else env


def _make_by_id(id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None) -> gymnasium.Env:
    try:
        # The checker costs more than a CartPole step; spaces are checked once, in describe().
        return gymnasium.make(id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"env.id: cannot make {id!r}: {reason}") from error


def describe(env: gymnasium.Env, id: str, frame_skip: int) -> EnvSpec:
    """Read an environment's spec off its spaces."""
    observation, action = env.observation_space, env.action_space
    assert isinstance(observation, spaces.Box)
    dtype = np.dtype(np.float32) if np.issubdtype(observation.dtype, np.floating) else observation.dtype
    common: dict[str, Any] = {
        "id": id,
        "observation_shape": observation.shape,
        "observation_dtype": dtype,
        "frame_skip": frame_skip,
        "max_episode_steps": env.spec.max_episode_steps if env.spec else None,
        "reward_threshold": env.spec.reward_threshold if env.spec else None,
    }
    if isinstance(action, spaces.Discrete) and action.start == 0:
        return EnvSpec(action_shape=(), action_dtype=np.dtype(np.int64), num_actions=int(action.n), **common)
    if isinstance(action, spaces.Box):
        bounds: dict[str, Any] = {"action_low": action.low, "action_high": action.high}
        return EnvSpec(action_shape=action.shape, action_dtype=np.dtype(np.float32), **bounds, **common)
    raise ConfigError(f"env.id: {id} has the action space {action}; Discrete (from 0) and Box are supported")
