"""Wrappers that gymnasium lacks, or has in a form that cannot be resumed or ends an episode on a stale frame.

What they remember never outlives an episode: its seed and its actions bring it back, whatever was played before.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from runner.types import NonNegativeInt, PositiveInt

MOST_RESETS = 100
"""An environment whose episodes end within their no-ops over and over is broken."""

Started = tuple[Any, dict[str, Any]]
Stepped = tuple[Any, float, bool, bool, dict[str, Any]]


class FrameSkip(gymnasium.Wrapper):
    """Repeats each action ``skip`` times, adds up the rewards, and stops early where the episode ends.

    Args:
        max_pool: show the larger of the last two frames at each pixel, for games that draw things in every other one;
            the two are always of the same repetition, which is what gymnasium's ``MaxAndSkipObservation`` lacks.
    """

    def __init__(self, env: gymnasium.Env, skip: PositiveInt, max_pool: bool = False) -> None:
        super().__init__(env)
        self.skip, self.max_pool = skip, max_pool

    def step(self, action: Any) -> Stepped:
        total, before = 0.0, None
        for repetition in range(self.skip):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
            if self.max_pool and repetition == self.skip - 2:
                before = np.array(observation)  # the environment may draw the next frame into the same memory
        if before is not None:
            observation = np.maximum(before, observation)
        return observation, total, terminated, truncated, info


class NoopReset(gymnasium.Wrapper):
    """Begins each episode with 1 to ``noops`` no-ops, as many as the episode's seed says (Mnih et al. 2015).

    Args:
        action: that does nothing.
    """

    def __init__(self, env: gymnasium.Env, noops: NonNegativeInt = 30, action: NonNegativeInt = 0) -> None:
        super().__init__(env)
        _check_action(env, action, "NoopReset", "NOOP")
        self.noops, self.action = noops, action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Started:
        started = self.env.reset(seed=seed, options=options)
        generator = np.random.default_rng(seed) if seed is not None else self.np_random
        count = int(generator.integers(1, self.noops + 1)) if self.noops else 0
        return _play_on(self.env, started, [self.action] * count)


class FireReset(gymnasium.Wrapper):
    """Begins each episode, and each life of it, by pressing FIRE, without which some games wait for ever.

    Args:
        if_any: leave games alone that have no such action.
    """

    def __init__(self, env: gymnasium.Env, action: NonNegativeInt = 1, if_any: bool = False) -> None:
        super().__init__(env)
        self.action: int | None = action
        if if_any and "FIRE" not in _meanings(env):
            self.action = None
        else:
            _check_action(env, action, "FireReset", "FIRE")
        self.lives = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Started:
        started = self.env.reset(seed=seed, options=options)
        if self.action is not None:
            started = _play_on(self.env, started, [self.action])
        self.lives = _lives_of(self) or 0
        return started

    def step(self, action: Any) -> Stepped:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self.lives = self.lives, _lives_of(self) or 0
        if self.action is not None and self.lives < before and not (terminated or truncated):
            observation, more, terminated, truncated, info = self.env.step(self.action)
            reward = float(reward) + float(more)
        return observation, float(reward), terminated, truncated, info


class LifeLoss(gymnasium.Wrapper):
    """Ends an episode with each life that is lost, while the game goes on (Mnih et al. 2015).

    A reset without a seed, where ``goes_on``, begins the next life by one no-op; one with a seed begins a new game.
    The runner does the former and keeps the tape of the whole game, so that later lives are learnt from and a resumed
    run comes back to them. Evaluation plays whole games: there this is left out.
    """

    def __init__(self, env: gymnasium.Env, action: NonNegativeInt = 0) -> None:
        super().__init__(env)
        _check_action(env, action, "LifeLoss", "NOOP")
        if _lives_of(self) is None:
            raise ValueError(f"LifeLoss needs an environment with lives; {type(self.unwrapped).__name__} has none")
        self.action, self.lives, self.goes_on = action, 0, False

    def step(self, action: Any) -> Stepped:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self.lives = self.lives, _lives_of(self) or 0
        # Some games show 0 lives for a few frames after the last one is lost, before they are over.
        self.goes_on = 0 < self.lives < before and not (terminated or truncated)
        return observation, float(reward), terminated or self.goes_on, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Started:
        if seed is None and self.goes_on:
            observation, _, terminated, truncated, info = self.env.step(self.action)
            started = self.env.reset() if terminated or truncated else (observation, info)
        else:
            started = self.env.reset(seed=seed, options=options)
        self.lives, self.goes_on = _lives_of(self) or 0, False
        return started


class CenterCrop(gymnasium.ObservationWrapper):
    """The middle of an image ``[H, W, ...]``, ``height`` x ``width`` pixels of it."""

    def __init__(self, env: gymnasium.Env, height: PositiveInt, width: PositiveInt) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) < 2:
            raise ValueError(f"CenterCrop needs an image [H, W, ...]; the observations are {space}")
        if height > space.shape[0] or width > space.shape[1]:
            raise ValueError(f"CenterCrop: {height} x {width} is larger than the image, {space.shape[:2]}")
        top, left = (space.shape[0] - height) // 2, (space.shape[1] - width) // 2
        self._window = slice(top, top + height), slice(left, left + width)
        low, high = space.low[self._window], space.high[self._window]
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: Any) -> Any:
        return observation[self._window]


class PixelRenderTransform(gymnasium.Wrapper):
    """Shows what the environment draws, ``[H, W, 3]`` of bytes: in place of its observations, or beside them.

    Args:
        key: ``None``: in place of the observations; else they become ``{"observation": ..., key: picture}``, which the
            runner flattens into one vector, unless a wrapper around this one makes something else of it.
        preproc: what is made of each picture.
        render_method: of the environment's, what draws it.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        key: str | None = None,
        preproc: Callable[[np.ndarray], np.ndarray] | None = None,
        render_method: str = "render",
    ) -> None:
        super().__init__(env)
        self.key, self.preproc, self.is_on = key, preproc, True
        self._draw = getattr(env, render_method)
        picture = self._first()
        self._blank = np.zeros_like(picture)
        high = np.iinfo(picture.dtype).max if picture.dtype.kind in "iu" else np.inf
        space: spaces.Space = spaces.Box(0, high, picture.shape, picture.dtype.type)
        if key is not None:
            space = spaces.Dict({"observation": env.observation_space, key: space})
        self.observation_space = space

    def _first(self) -> np.ndarray:
        """A picture of some beginning; which one the environment draws next from its generator stays as it was."""
        base = self.env.unwrapped
        before = base._np_random, base._np_random_seed
        self.env.reset(seed=0)
        picture = self._draw()
        base._np_random, base._np_random_seed = before
        if not isinstance(picture, np.ndarray):
            shown = f"{type(base).__name__} drew a {type(picture).__name__}"
            raise ValueError(f"PixelRenderTransform needs env.kwargs.render_mode=rgb_array: {shown}")
        return self._processed(picture)

    def _processed(self, picture: np.ndarray) -> np.ndarray:
        return picture if self.preproc is None else np.asarray(self.preproc(picture))

    def switch(self, is_on: bool | None = None) -> None:
        """Draw, or (black pictures) do not, to save time; the other of the two where nothing is said."""
        if self.key is None:
            raise ValueError("PixelRenderTransform: pictures in place of the observations cannot be left out")
        self.is_on = not self.is_on if is_on is None else is_on

    def _seen(self, observation: Any) -> Any:
        picture = self._processed(self._draw()) if self.is_on else self._blank
        return picture if self.key is None else {"observation": observation, self.key: picture}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Started:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._seen(observation), info

    def step(self, action: Any) -> Stepped:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(observation), float(reward), terminated, truncated, info


class ScaleReward(gymnasium.RewardWrapper):
    """``reward * scale + loc``."""

    def __init__(self, env: gymnasium.Env, scale: float, loc: float = 0.0) -> None:
        super().__init__(env)
        self.scale, self.loc = scale, loc

    def reward(self, reward: Any) -> float:
        return float(reward) * self.scale + self.loc


class ShiftedObservation(gymnasium.ObservationWrapper):
    """``(observation - loc) / scale`` with numbers that stay as they are; running ones belong to the network."""

    def __init__(self, env: gymnasium.Env, loc: Any, scale: Any) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box):
            raise ValueError(f"ShiftedObservation needs observations of numbers; they are {space}")
        self.loc, self.scale = np.asarray(loc, np.float32), np.asarray(scale, np.float32)
        if not (np.isfinite(self.loc).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"loc and scale must be finite, and scale > 0; they are {loc} and {scale}")
        low, high = (np.broadcast_to(self.observation(end), space.shape) for end in (space.low, space.high))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return ((observation - self.loc) / self.scale).astype(np.float32)


class OneHotAction(gymnasium.ActionWrapper):
    """Takes a discrete action as a vector with one entry for each, of which the largest is meant."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(f"OneHotAction needs discrete actions; {env.action_space} is given")
        self._start = int(env.action_space.start)
        self.action_space = spaces.Box(0.0, 1.0, (int(env.action_space.n),), np.float32)

    def action(self, action: Any) -> int:
        return int(np.argmax(action)) + self._start


def _meanings(env: gymnasium.Env) -> list[str]:
    """What the environment says its actions mean, if it does."""
    told = getattr(env.unwrapped, "get_action_meanings", None)
    return list(told()) if callable(told) else []


def _lives_of(env: gymnasium.Env) -> int | None:
    """How many lives are left; ``None`` where there is no such thing."""
    base = env.unwrapped
    count = getattr(getattr(base, "ale", None), "lives", None) or getattr(base, "lives", None)
    return None if count is None else int(count() if callable(count) else count)


class InfoActionMask(gymnasium.Wrapper):
    """Says by ``action_masks`` what the environment says in ``info["action_mask"]``, as gymnasium's Taxi does.

    Args:
        key: of ``info``.
    """

    def __init__(self, env: gymnasium.Env, key: str = "action_mask") -> None:
        super().__init__(env)
        self.key = key
        self._mask: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Started:
        return self._noted(self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Stepped:
        return self._noted(self.env.step(action))

    def _noted(self, answer: Any) -> Any:
        if self.key not in answer[-1]:
            raise ValueError(f"InfoActionMask: the environment's info has no {self.key!r}; it has {list(answer[-1])}")
        self._mask = answer[-1][self.key]
        return answer

    def action_masks(self) -> Any:
        """``[A]``, of the last step or reset."""
        return self._mask


def _check_action(env: gymnasium.Env, action: int, name: str, meaning: str) -> None:
    """Refuse an action that the environment lacks, or says to mean something else."""
    space = env.action_space
    if not isinstance(space, spaces.Discrete) or not space.start <= action < space.start + space.n:
        raise ValueError(f"{name} takes the action {action}, which {space} does not have")
    meanings = _meanings(env)
    if meanings and meanings[action] != meaning:
        raise ValueError(f"{name} needs the action {meaning}; action {action} of the environment is {meanings[action]}")


def _play_on(env: gymnasium.Env, started: Started, actions: list[Any]) -> Started:
    """Take ``actions``, each game that they end being followed by another."""
    observation, info = started
    resets = 0
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            resets += 1
            if resets > MOST_RESETS:
                raise RuntimeError(f"every episode ends within {len(actions)} actions of its beginning")
            observation, info = env.reset()
    return observation, info


class KeepElements(gymnasium.ObservationWrapper):
    """Hides all elements of a vector observation but those at ``keep``, so that an agent has to remember."""

    def __init__(self, env: gymnasium.Env, keep: list[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not set(keep) <= set(range(space.shape[0])):
            raise ValueError(f"keep={keep} are no elements of {space}")
        self.keep = list(keep)
        self.observation_space = spaces.Box(space.low[self.keep], space.high[self.keep], dtype=space.dtype.type)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self.keep]
