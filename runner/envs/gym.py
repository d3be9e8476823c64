"""One gymnasium environment: made, wrapped once, and described."""

import importlib
import importlib.util
import inspect
import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import (
    AtariPreprocessing,
    FlattenObservation,
    MaxAndSkipObservation,
    RepeatAction,
    TimeLimit,
)

from runner.envs import two_tasks
from runner.envs.masks import mask_function
from runner.envs.tasks import SampledTask
from runner.envs.transforms import FrameSkip, LifeLoss
from runner.spec import ConfigError, EnvSpec
from runner.types import Factory, Ranges, Wrapper, Wrappers

two_tasks.register()

REFUSED = {
    "NormalizeObservation": "its statistics outlive episodes; use network.normalize_observations=true",
    "NormalizeReward": "its statistics outlive episodes; a hook among learning normalizes rewards",
    "MaxAndSkipObservation": "the last frame of an episode is one of before; use FrameSkip of runner.envs.transforms "
    "with max_pool=true",
    "Autoreset": "the runner begins every episode itself, with a seed of its own",
    "RecordEpisodeStatistics": "returns and lengths are logged anyway, as train/* and eval/*",
    "RecordVideo": "it counts episodes, and a resumed run would not count on",
    "RenderCollection": "its frames outlive episodes",
}
"""Wrappers of gymnasium whose state crosses episodes, so that no seed and no tape brings it back, and what to do."""

DRAWN = {"render_mode": "rgb_array"}
"""What an environment is asked for whose pictures are wanted."""

FRAME_SKIP = "frame_skip"
REPEATS: dict[type[gymnasium.Env], str] = {
    FrameSkip: "skip",
    RepeatAction: "num_repeats",
    AtariPreprocessing: "frame_skip",
    MaxAndSkipObservation: "_skip",
}
"""Wrappers that repeat actions, and where they keep the number of times."""


def make_env(
    id: str,
    kwargs: Mapping[str, Any],
    make: Factory | None,
    max_episode_steps: int | None,
    frame_skip: int,
    transforms: Wrappers | None = None,
    for_evaluation: bool = False,
    sample: Ranges | None = None,
) -> gymnasium.Env:
    """Make one environment by gymnasium id, by ``module:Id``, or by calling ``make``, and wrap it.

    Observations that are no boxes are flattened into one vector (a discrete one becomes one-hot).

    Args:
        make: may have wrapped it already; one that repeats actions ``frame_skip`` times is not made to do so again.
        transforms: by name, applied in order. Actions are repeated before them all, unless one called ``frame_skip``
            does that in its place.
        for_evaluation: leave those out that change rewards or cut a game into lives.
        sample: attributes that are drawn anew for each episode.
    """
    env = make() if make is not None else _make_by_id(id, kwargs, max_episode_steps)
    if make is not None and max_episode_steps is not None:
        env = TimeLimit(env, max_episode_steps)
    if sample:
        env = SampledTask(env, sample)
    if frame_skip > 1 and (transforms or {}).get(FRAME_SKIP) is None and _repeats(env) == 1:
        env = FrameSkip(env, frame_skip)
    env = _transformed(env, transforms or {}, for_evaluation)
    if (repeats := _repeats(env)) != frame_skip:
        words = f"an action is repeated {repeats} times, while frame_skip={frame_skip} counts the frames"
        raise ConfigError(f"frame_skip: {words}; a wrapper that repeats actions is called env.transforms.{FRAME_SKIP}")
    return env if isinstance(env.observation_space, spaces.Box) else FlattenObservation(env)


def _transformed(env: gymnasium.Env, transforms: Wrappers, for_evaluation: bool) -> gymnasium.Env:
    for name, wrap in transforms.items():
        if wrap is not None:
            wrapped = _wrapped(env, name, wrap)
            is_for_training = isinstance(wrapped, gymnasium.RewardWrapper | LifeLoss)
            env = env if for_evaluation and is_for_training else wrapped
    return env


def _wrapped(env: gymnasium.Env, name: str, wrap: Wrapper) -> gymnasium.Env:
    """Where a wrapper refuses the environment, what it says is the answer to whoever put it there."""
    if not callable(wrap):
        raise ConfigError(f"env.transforms.{name}: expected a node with a _target_, got {wrap!r}")
    try:
        wrapped = wrap(env)
    except ConfigError:
        raise
    except (Exception, AssertionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"env.transforms.{name}: {reason}") from error
    if not isinstance(wrapped, gymnasium.Env):
        raise ConfigError(f"env.transforms.{name}: expected a wrapper, its target returned a {type(wrapped).__name__}")
    for one in wrappers_of(wrapped)[: -len(wrappers_of(env))]:
        kind = type(one).__name__
        if kind in REFUSED and type(one).__module__.startswith("gymnasium."):
            raise ConfigError(f"env.transforms.{name}: {kind} is not taken: {REFUSED[kind]}")
    return wrapped


def wrappers_of(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The environment and all it wraps, from the outermost to the innermost."""
    chain = [env]
    while isinstance(chain[-1], gymnasium.Wrapper):
        chain.append(chain[-1].env)
    return chain


def drawn_by(make: Factory) -> Factory:
    """``make`` as a function of what can be drawn, where it can be told so."""
    parameters = inspect.signature(make).parameters.values()
    is_asked = any(one.name == "render_mode" or one.kind is one.VAR_KEYWORD for one in parameters)
    return partial(make, **DRAWN) if is_asked else make


def _repeats(env: gymnasium.Env) -> int:
    """How often an action is repeated, by the wrappers and, as Atari's games do, by the environment itself."""
    own = env.spec.kwargs.get("frameskip", 1) if env.spec else 1
    by_wrappers = (getattr(one, REPEATS[type(one)]) for one in wrappers_of(env) if type(one) in REPEATS)
    return math.prod(by_wrappers, start=own if isinstance(own, int) else 1)


def _make_by_id(id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None) -> gymnasium.Env:
    if id.startswith("ALE/") and importlib.util.find_spec("ale_py") is not None:
        importlib.import_module("ale_py")  # registers its games; gymnasium no longer does so by itself
    if kwargs.get("render_mode") != "human":  # pictures need no screen, and SDL complains where there is none
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")  # the one way of MuJoCo's that draws without a screen
    try:
        # The checker costs more than a CartPole step; spaces are checked once, in describe().
        return gymnasium.make(id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"env.id: cannot make {id!r}: {reason}") from error


def describe(env: gymnasium.Env, id: str, frame_skip: int) -> EnvSpec:
    """Read an environment's spec off its spaces, and off whether it says which actions can be taken."""
    observation, action = env.observation_space, env.action_space
    assert isinstance(observation, spaces.Box)
    dtype = np.dtype(np.float32) if np.issubdtype(observation.dtype, np.floating) else observation.dtype
    common: dict[str, Any] = {
        "id": id,
        "observation_shape": observation.shape,
        "observation_dtype": dtype,
        "observation_high": _largest(observation),
        "frame_skip": frame_skip,
        "max_episode_steps": env.spec.max_episode_steps if env.spec else None,
        "reward_threshold": env.spec.reward_threshold if env.spec else None,
        "has_action_mask": mask_function(env) is not None,
    }
    if isinstance(action, spaces.Discrete) and action.start == 0:
        return EnvSpec(action_shape=(), action_dtype=np.dtype(np.int64), num_actions=int(action.n), **common)
    if isinstance(action, spaces.Box):
        bounds: dict[str, Any] = {"action_low": action.low, "action_high": action.high}
        return EnvSpec(action_shape=action.shape, action_dtype=np.dtype(np.float32), **bounds, **common)
    raise ConfigError(f"env.id: {id} has the action space {action}; Discrete (from 0) and Box are supported")


def _largest(space: spaces.Box) -> float | None:
    """The largest value of whole numbers and bytes, such as 255 for images; ``None`` for other observations."""
    return float(np.max(space.high)) if space.dtype.kind in "iu" and space.high.size else None
