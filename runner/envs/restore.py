"""How an environment in mid-episode is brought back: from a snapshot, from a tape of actions, or not at all."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import (
    ClipAction,
    ClipReward,
    DtypeObservation,
    FlattenObservation,
    GrayscaleObservation,
    OrderEnforcing,
    RescaleAction,
    RescaleObservation,
    ReshapeObservation,
    ResizeObservation,
    TimeLimit,
)

from runner.envs.gym import wrappers_of
from runner.envs.transforms import CenterCrop, FrameSkip, OneHotAction, ScaleReward, ShiftedObservation
from runner.spec import EnvSpec

log = logging.getLogger(__name__)

PROBE_STEPS = 30
_PAIRS = (("get_state", "set_state"), ("clone_state", "restore_state"))
FORGETFUL: tuple[type[gymnasium.Wrapper], ...] = (
    *(ClipAction, ClipReward, DtypeObservation, FlattenObservation, GrayscaleObservation, OrderEnforcing),
    *(RescaleAction, RescaleObservation, ReshapeObservation, ResizeObservation),
    *(CenterCrop, FrameSkip, OneHotAction, ScaleReward, ShiftedObservation),
)
"""Wrappers without a memory: the state of what they wrap is their whole state."""


class Snapshot(NamedTuple):
    """How to read and write the whole state of an environment."""

    get: Callable[[], Any]
    set: Callable[[Any], None]


def snapshot_of(env: gymnasium.Env) -> Snapshot | None:
    """The environment's own pair of state functions, joined with the step counts of its time limits.

    There is none where a wrapper may remember something besides, as a frame stack does: the tape brings that back.
    """
    if not all(type(wrapper) in (TimeLimit, *FORGETFUL) for wrapper in wrappers_of(env)[:-1]):
        return None
    for get_name, set_name in _PAIRS:
        get, put = (getattr(env.unwrapped, name, None) for name in (get_name, set_name))
        if callable(get) and callable(put):
            return _with_time_limits(env, get, put)
    return None


def _with_time_limits(env: gymnasium.Env, get: Callable[[], Any], put: Callable[[Any], Any]) -> Snapshot:
    limits = [wrapper for wrapper in wrappers_of(env) if isinstance(wrapper, TimeLimit)]

    def get_all() -> dict[str, Any]:
        return {"state": get(), "elapsed_steps": [limit._elapsed_steps for limit in limits]}

    def set_all(saved: dict[str, Any]) -> None:
        put(saved["state"])
        for limit, elapsed_steps in zip(limits, saved["elapsed_steps"], strict=True):
            limit._elapsed_steps = elapsed_steps

    return Snapshot(get_all, set_all)


class Playable(Protocol):
    """One environment; see ``runner.envs.instance.Instance``."""

    spec: EnvSpec

    @property
    def env(self) -> gymnasium.Env: ...

    def try_reset(self, seed: int) -> np.ndarray: ...

    def try_step(self, action: Any) -> tuple[Any, Any, Any, Any]: ...

    def try_mask(self) -> np.ndarray: ...


def probe(one: Playable, spec: EnvSpec) -> str:
    """Play 30 steps, bring them back, and name the best mode that worked: ``snapshot``, ``tape`` or ``none``."""
    actions = _random_actions(spec)
    if _snapshot_works(one, actions):
        return "snapshot"
    if _same(_play(one, actions), _play(one, actions)):
        return "tape"
    log.warning(
        "%s does not repeat itself from the same seed and actions: a resumed run restarts its episodes", spec.id
    )
    return "none"


def _snapshot_works(one: Playable, actions: list[Any]) -> bool:
    snapshot = snapshot_of(one.env)
    if snapshot is None:
        return False
    try:
        one.try_reset(1)
        saved = snapshot.get()
        if not _is_plain(saved):
            return False
        first = _follow(one, actions)
        snapshot.set(saved)
        return _same(first, _follow(one, actions))
    except Exception as error:  # foreign code: whatever it raises, there is still the tape
        log.info("no snapshots of %s: %s", one.env, error)
        return False


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def _random_actions(spec: EnvSpec) -> list[Any]:
    """Actions or, where not all can be taken, numbers for all of them: the largest of one that can be decides."""
    generator = np.random.default_rng(0)
    if spec.has_action_mask:
        return list(generator.random((PROBE_STEPS, spec.num_actions or 0)))
    if spec.num_actions is not None:
        return generator.integers(spec.num_actions, size=PROBE_STEPS).tolist()
    low, high = (np.clip(bound, spec.action_low, spec.action_high) for bound in (-1, 1))
    return list(generator.uniform(low, high, (PROBE_STEPS, *spec.action_shape)).astype(spec.action_dtype))


def _play(one: Playable, actions: list[Any]) -> list[tuple[Any, ...]]:
    observation = one.try_reset(1)
    return [(np.array(observation),), *_follow(one, actions)]


def _follow(one: Playable, actions: list[Any]) -> list[tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = []
    for action in actions:
        if one.spec.has_action_mask:
            action = int(np.where(one.try_mask(), action, -1).argmax())
        observation, reward, terminated, truncated = one.try_step(action)
        steps.append((np.array(observation), reward, terminated, truncated))
        if terminated or truncated:
            break
    return steps


def _same(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]]) -> bool:
    return len(first) == len(second) and all(
        np.array_equal(left, right)
        for one, other in zip(first, second, strict=True)
        for left, right in zip(one, other, strict=True)
    )
