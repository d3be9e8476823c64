"""Plain values in, environments out: one wrapped environment, several in step, and what their numbers are like."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import (
    AddRenderObservation,
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
    TimeLimit,
)

from runner.envs.gym import make_env
from runner.envs.rollout import random_observations
from runner.envs.transforms import CenterCrop, NoopReset, OneHotAction, ScaleReward, ShiftedObservation
from runner.envs.vector import Environment, make_environment
from runner.seeding import Streams, unchanged_globals
from runner.spec import ConfigError
from runner.types import Factory, NonNegativeInt, PositiveInt, Wrapper, Wrappers

Maker = Callable[[], gymnasium.Env]
Statistics = Mapping[str, Any]
"""``loc`` and ``scale``, numbers or one for each element of an observation."""

CORRECTED = "frame_skip_corrected"
IN_FRAMES = frozenset(
    """max_frames_per_traj frames_per_batch record_frames annealing_frames init_random_frames init_env_steps
    noops""".split()
)
"""What people count in frames, and a collector in env steps. Not ``total_frames``: a run's progress counts frames."""


def transformed_env(
    *,
    env_library: Literal["gym", "dm_control"] = "gym",
    env_name: str | None = None,
    env_task: str = "",
    from_pixels: bool = False,
    frame_skip: PositiveInt = 1,
    reward_scaling: float | None = None,
    reward_loc: float = 0.0,
    vecnorm: bool = False,
    norm_rewards: bool = False,
    norm_stats: bool = True,
    noops: NonNegativeInt = 0,
    catframes: NonNegativeInt = 0,
    center_crop: list[PositiveInt] | None = None,
    grayscale: bool = True,
    max_frames_per_traj: int | None = 1000,
    image_size: PositiveInt = 84,
    categorical_action_encoding: bool = True,
    stats: dict[str, Any] | None = None,
    custom_env: Any = None,
    custom_env_maker: Factory | None = None,
    return_transformed_envs: bool = True,
) -> gymnasium.Env:
    """One environment with the transforms that its keywords ask for.

    From the inside out: repeated actions, no-ops, (of pixels: rendering, crop, resizing, grayscale), normalization, a
    stack of frames, scaled rewards, one-hot actions, a time limit. Raises ``ConfigError`` for what does not fit.

    Args:
        env_library: ``gym`` takes ids of gymnasium; ``dm_control`` those that shimmy registers, by name and task.
        env_name: for ``gym``, an id or ``module:Id``.
        reward_scaling, reward_loc: ``reward * scaling + loc``; evaluation on such an environment sees them, too.
        vecnorm, norm_rewards: refused with what to use instead, since running statistics belong to the policy.
        norm_stats: whether to normalize by ``stats``, if there are any.
        noops: at most so many at the beginning of an episode.
        catframes: observations in a stack; pixels need one.
        center_crop: height and width, or one number for both.
        max_frames_per_traj: env steps after which an episode is truncated; -1 or ``None`` for no such limit.
        image_size: height and width of pixels.
        categorical_action_encoding: false takes one-hot vectors for discrete actions.
        stats: ``loc`` and ``scale``, as :func:`get_stats_random_rollout` finds them.
        custom_env, custom_env_maker: in place of a name, not both; an instance can be wrapped once.
        return_transformed_envs: false leaves out all but the frame skip.
    """
    _refuse_running_statistics(vecnorm=vecnorm, norm_rewards=norm_rewards)
    if from_pixels and not catframes and return_transformed_envs:
        raise ConfigError("from_pixels=True needs catframes > 0: one picture does not tell how things move")
    transforms: Wrappers = {
        "noops": partial(NoopReset, noops=noops) if noops else None,
        **(_of_pixels(center_crop or [], image_size, grayscale) if from_pixels else {}),
        "stats": partial(ShiftedObservation, **stats) if norm_stats and stats else None,
        "catframes": partial(FrameStackObservation, stack_size=catframes) if catframes else None,
        "reward": None if reward_scaling is None else partial(ScaleReward, scale=reward_scaling, loc=reward_loc),
        "action": None if categorical_action_encoding else OneHotAction,
        "limit": _limit(max_frames_per_traj),
    }
    make = _maker(env_library, env_name, env_task, from_pixels, custom_env, custom_env_maker)
    return make_env("", {}, make, None, frame_skip, transforms if return_transformed_envs else None)


def _refuse_running_statistics(**asked: bool) -> None:
    for name in [name for name, value in asked.items() if value]:
        raise ConfigError(
            f"{name}=True: running statistics are no part of an environment; use network.normalize_observations=true "
            "for observations, and a hook among learning for rewards"
        )


def _limit(steps: int | None) -> Wrapper | None:
    if steps is None or steps == -1:
        return None
    if steps < 1:
        raise ConfigError(f"max_frames_per_traj is a number of env steps, or -1 for no limit; it is {steps}")
    return partial(TimeLimit, max_episode_steps=steps)


def _of_pixels(crop: list[int], image_size: int, grayscale: bool) -> Wrappers:
    if len(crop) > 2:
        raise ConfigError(f"center_crop is [height, width], or [size]; it is {crop}")
    return {
        "render": _rendered,
        "crop": partial(CenterCrop, height=crop[0], width=crop[-1]) if crop else None,
        "resize": partial(ResizeObservation, shape=(image_size, image_size)),
        "grayscale": _gray if grayscale else None,
    }


def _rendered(env: gymnasium.Env) -> gymnasium.Env:
    """With pictures for observations, unless they are pictures already."""
    shape = env.observation_space.shape or ()
    return env if len(shape) == 3 and env.observation_space.dtype == np.uint8 else AddRenderObservation(env)


def _gray(env: gymnasium.Env) -> gymnasium.Env:
    return GrayscaleObservation(env) if len(env.observation_space.shape or ()) == 3 else env


def _maker(
    library: str, name: str | None, task: str, from_pixels: bool, custom_env: Any, custom_env_maker: Factory | None
) -> Maker:
    """What makes the bare environment; raises ``ConfigError`` unless exactly one way is given."""
    if custom_env is not None and custom_env_maker is not None:
        raise ConfigError("choose either custom_env or custom_env_maker, not both")
    if (name is None) == (custom_env is None and custom_env_maker is None):
        raise ConfigError("give either an env_name or an environment of your own, custom_env or custom_env_maker")
    if custom_env_maker is not None:
        return custom_env_maker
    if custom_env is not None:
        return lambda: custom_env
    if library not in ("gym", "dm_control"):
        raise ConfigError(f"env_library={library}: there are gym and dm_control")
    if task and library == "gym":
        raise ConfigError(f"env_task={task} goes with env_library=dm_control; an id of gymnasium names its task itself")
    id = str(name) if library == "gym" else f"shimmy:dm_control/{name}-{task}-v0"
    kwargs: dict[str, Any] = {"render_mode": "rgb_array"} if from_pixels else {}
    if id.startswith("ALE/"):  # its observations are pictures, and it repeats actions unless told not to
        kwargs = {"frameskip": 1}
    return partial(make_env, id, kwargs, None, None, 1)


def transformed_env_constructor(**options: Any) -> Maker:
    """A function without arguments that makes one wrapped environment; ``options`` are those of `transformed_env`.

    Bad options are refused here, where they are written: the first environment is made now, and returned first.
    """
    first: list[gymnasium.Env] = [transformed_env(**options)]

    def construct() -> gymnasium.Env:
        if first:
            return first.pop()
        if options.get("custom_env") is not None:
            raise ConfigError("custom_env is one environment, which was handed out; custom_env_maker makes several")
        return transformed_env(**options)

    return construct


def parallel_env_constructor(
    *, num_envs: PositiveInt = 1, seed: NonNegativeInt = 0, batch_transform: bool = False, **options: Any
) -> Maker | Environment:
    """A constructor of one environment or, with several, all of them in step; ``options``: see `transformed_env`.

    Args:
        batch_transform: makes no difference: each environment has its own transforms, whose results are the same.
    """
    if num_envs > 1 and options.get("custom_env") is not None:
        raise ConfigError(f"custom_env is one environment; {num_envs} need a custom_env_maker, which makes several")
    construct = transformed_env_constructor(**options)
    if num_envs == 1:
        return construct
    skip = options.get("frame_skip", 1)
    return make_environment(streams=Streams(seed), num_envs=num_envs, make=construct, frame_skip=skip)


def get_stats_random_rollout(
    *,
    proof_environment: gymnasium.Env | None = None,
    key: str | None = None,
    init_env_steps: PositiveInt = 1000,
    seed: NonNegativeInt = 0,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """``loc`` and ``scale`` of observations under random actions: one for all pixels, or one for each element.

    What never changes keeps its value: ``loc`` 0, ``scale`` 1.

    Args:
        proof_environment: left open; one is made of ``options`` where it is not given.
        key: of observations that are dicts; their only one, or ``pixels``, where not given.

    Raises:
        ValueError: where the statistics are not finite, or there is no such key.
    """
    own = None if proof_environment is not None else transformed_env(**{"norm_stats": False, **options})
    env = proof_environment if own is None else own
    assert env is not None
    try:
        name, env = _seen(env, key)
        with unchanged_globals():
            seen = torch.from_numpy(random_observations(env, init_env_steps, seed)).double()
    finally:
        if own is not None:
            own.close()
    is_pixels = name == "pixels" or (len(env.observation_space.shape or ()) > 1 and bool(options.get("from_pixels")))
    dims = tuple(range(seen.ndim)) if is_pixels else (0,)
    loc, scale = seen.mean(dims), seen.std(dims, correction=0)
    if not (loc.isfinite().all() and scale.isfinite().all()):
        raise ValueError(f"the statistics of {name} are not finite: loc {loc.tolist()}, scale {scale.tolist()}")
    varies = seen.amax(dims) > seen.amin(dims)
    return {"loc": loc.where(varies, 0.0).float(), "scale": scale.where(varies, 1.0).float()}


def _seen(env: gymnasium.Env, key: str | None) -> tuple[str, gymnasium.Env]:
    """The key of the observations to look at, and an environment that shows nothing else."""
    space = env.observation_space
    if not isinstance(space, spaces.Dict):
        is_image = isinstance(space, spaces.Box) and len(space.shape) >= 2 and space.dtype == np.uint8
        own = "pixels" if is_image else "observation"
        if key not in (None, own, "observation"):
            raise ValueError(f"there is no key {key}; the observations are {own}")
        return key or own, env
    keys = list(space.spaces)
    name = key or (keys[0] if len(keys) == 1 else "pixels")
    if name not in keys:
        raise ValueError(f"there is no key {name}; choose one with key=: {', '.join(keys)}")
    return name, gymnasium.wrappers.TransformObservation(env, lambda seen: seen[name], space[name])


def correct_for_frame_skip(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose counts of frames are counts of env steps: each divided by ``frame_skip``, positive ones at least 1.

    What is ``None``, 0 or -1 stays. ``total_frames`` stays as well, since ``Progress`` counts frames by the frame skip.
    The copy says that it is one, under ``frame_skip_corrected``, and is returned as it is from then on.

    Args:
        config: flat, or nested like a run's; ``frame_skip`` is at the top or in ``env``.
    """
    env = config.get("env")
    skip = config.get("frame_skip", env.get("frame_skip", 1) if isinstance(env, Mapping) else 1)
    done = config.get(CORRECTED)
    if done is not None and done != skip:
        raise ValueError(f"the counts were divided by frame_skip={done} before it was changed to {skip}")
    return dict(config) if done is not None else {**_divided(config, skip), CORRECTED: skip}


def _divided(config: Mapping[str, Any], skip: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found[name] = _divided(value, skip)
        else:
            is_count = name in IN_FRAMES and type(value) is int and value > 0
            found[name] = max(1, value // skip) if is_count else value
    return found
