"""Several environments stepped in this process by a plain loop, faster for cheap ones than any vector class."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from runner.envs.checks import Bounds
from runner.envs.guard import Guard, OnError
from runner.envs.gym import DRAWN, describe, drawn_by, make_env
from runner.envs.masks import Masks
from runner.envs.restore import probe
from runner.envs.rollout import random_observations
from runner.envs.single import Mark, Single
from runner.envs.watch import Watch
from runner.seeding import Streams, env_seed, unchanged_globals
from runner.spec import ConfigError, EnvFault, StateDict
from runner.types import Factory, NonNegativeInt, PositiveFloat, PositiveInt, Ranges, Wrappers

log = logging.getLogger(__name__)

_LISTS = ("episodes", "returns", "lengths", "within")
"""What a state has of each environment, besides its observation."""
CHECK_EVERY_BATCHES = 16
"""From the 100th batch on only so many are looked at for bounds: an excursion is worth a warning, not 2 us a batch."""


Makers = Callable[[], gymnasium.Env] | Sequence[Callable[[], gymnasium.Env]]
"""Makes any environment of several; or one function for each of them."""


class StepArrays(Protocol):
    """Where the outcomes of a batch of steps are written, each ``[T, N, ...]``."""

    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray
    next_action_mask: np.ndarray


class Environment:
    """``N`` gymnasium environments in step, each episode reset with a seed of its own, without autoreset of their own.

    ``observation`` is the current one of each, ``[N, ...]``: after an episode's end the first of the next episode,
    while the last one of the ended episode is what :meth:`step` wrote as next observation. ``mask`` ``[N, A]`` is which
    actions can be taken there; it is empty where the environments do not say.

    Args:
        make: makes any of them, or makes each its own.
        id: its name; the class's if not given.
        guard: what to do when one fails.
        evaluation_make: makes those of the evaluation, if they are others.
        recording_make: makes those that can be drawn, if they are others.
        first: the number of the first, where these are a part of more.
        resume_mode: how an episode under way is brought back, where that was tried out already.

    Raises:
        EnvFault: where an environment fails at anything and ``guard`` does not allow to make it anew.
    """

    def __init__(
        self,
        make: Makers,
        num_envs: int,
        id: str | None,
        frame_skip: int,
        seed: int,
        guard: Guard | None = None,
        evaluation_make: Callable[[], gymnasium.Env] | None = None,
        first: int = 0,
        resume_mode: str | None = None,
        recording_make: Callable[[], gymnasium.Env] | None = None,
    ) -> None:
        self._recording_make = recording_make
        self.make, self.num_envs, self.guard, self.first = make, num_envs, guard or Guard(), first
        self._evaluation_make: Makers = evaluation_make or make
        self._id, self._frame_skip, self._seed = id, frame_skip, seed
        try:
            trial = self._make_single(make, f"env {first}", first)
            self.spec = trial.spec
            self.resume_mode = resume_mode or self._probe(trial)
            self._warn_of_casts(trial)
        finally:
            self.guard.watch.stop()
        self.guard.is_trying_out = False
        self._singles, self._is_complete = [trial], False
        self.observation = np.zeros((num_envs, *self.spec.observation_shape), self.spec.observation_dtype)
        space = trial.env.observation_space
        is_bounded = isinstance(space, spaces.Box) and space.dtype.kind == "f" and bool(bounds := Bounds(space))
        self._bounds = bounds if is_bounded else None
        self._masks = Masks(num_envs, self.spec)
        self.mask = self._masks.now
        self._has_started, self._batches = False, 0
        self._left_behind: StateDict | None = None
        self._arrays: StepArrays | None = None
        self._written: tuple[Any, ...] = ()
        self._marks: list[Mark] = []
        self._marked_observation = self.observation.copy()

    def complete(self) -> None:
        """Make the environments after the first, which are not needed where others step their :meth:`part` of them."""
        if self._is_complete:
            return
        try:
            for index in range(len(self._singles), self.num_envs):
                self._singles.append(self._make_single(self.make, f"env {self.first + index}", self.first + index))
        finally:
            self.guard.watch.stop()
        for index, single in enumerate(self._singles):
            single.row = self.observation[index, ...]
            single.resume_by(self.resume_mode)
        self._is_complete = True

    def part(self, first: int, num_envs: int) -> "Environment":
        """Those from number ``first`` on, made anew and by themselves, for another process to step."""
        one = Environment(
            self.make,
            num_envs,
            self._id,
            self._frame_skip,
            self._seed,
            Guard(self.guard.on_error, self.guard.max_restarts, Watch(self.guard.watch.seconds)),
            first=first,
            resume_mode=self.resume_mode,
        )
        one.complete()
        return one

    def _make_single(self, make: Makers, name: str, *names: str | int) -> Single:
        def spec_of(env: gymnasium.Env) -> Any:
            return describe(env, self._id or type(env.unwrapped).__name__, self._frame_skip)

        def seed_of(episode: int) -> int:
            return env_seed(self._seed, "env", *names, episode)

        return Single(_maker(make, int(names[-1])), name, spec_of, self.guard, seed_of)

    def make_for_evaluation(self, index: int) -> Single:
        """Another environment, whose episodes nobody brings back but for its own failures."""
        return self._make_apart(self._evaluation_make, "evaluation", index)

    def make_for_recording(self, index: int) -> Single:
        """Another environment like those of the evaluation, but one that can be drawn."""
        return self._make_apart(self._recording_make or self._evaluation_make, "recording", index)

    def _make_apart(self, make: Makers, purpose: str, index: int) -> Single:
        single = self._make_single(make, f"{purpose} env {index}", purpose, index)
        single.resume_by(self.resume_mode, self.guard.restarting)
        single.episode = -1  # the first reset makes it 0
        return single

    def random_observations(self, steps: int) -> np.ndarray:
        """``[steps, *observation]`` of random actions in an environment of their own, the same for the same seed."""
        env = _maker(self.make, 0)()
        try:
            with unchanged_globals():
                observations = random_observations(env, steps, env_seed(self._seed, "env", "random", 0))
        finally:
            env.close()
        return observations.astype(self.spec.observation_dtype)

    def _probe(self, first: Single) -> str:
        first.episode = None
        while True:
            try:
                mode = probe(first, self.spec)
            except EnvFault as fault:
                self.guard.allow_restart(fault, fault.__cause__)
                first.renew()
            else:
                first.episode, first.seed = 0, None
                return mode

    def _warn_of_casts(self, first: Single) -> None:
        """Numbers of another type than is declared are taken, and said once; floats are float32 here in any case."""
        declared, returned = first.env.observation_space.dtype, first.checker.returned
        if self.spec.observation_dtype.kind == "f" and returned is not None and returned != declared:
            words = "%s: the observations are %s, their space declares %s; they are cast to %s"
            log.warning(words, first.place("reset"), returned, declared, self.spec.observation_dtype)

    @property
    def envs(self) -> list[gymnasium.Env]:
        return [single.env for single in self._singles]

    @property
    def episodes(self) -> list[int]:
        return [single.episode or 0 for single in self._singles]

    @property
    def begins(self) -> np.ndarray:  # which have not made a step of their episode, [N]
        return np.array([single.length == 0 for single in self._singles])

    def start(self) -> None:
        """Reset every environment to the beginning of its current episode, unless that was done before."""
        self.complete()
        self.guard.watch.start()
        if self._left_behind is not None:
            self.load_state_dict(self._left_behind)
        elif not self._has_started:
            for single in self._singles:
                single.begin()
            self._has_started = True
            self._masks.read(self._singles)

    def step(self, actions: list[Any], arrays: StepArrays, t: int) -> None:
        """Take one step in every environment and write the outcomes into row ``t`` of ``arrays``."""
        if arrays is not self._arrays:
            self._write_into(arrays)
        next_observations, rewards, terminations, truncations, returns, lengths = self._written
        first, singles, has_masks = t * self.num_envs, self._singles, self.spec.has_action_mask
        for index, action in enumerate(actions):  # zip takes 200 ns more
            single, at = singles[index], first + index
            observation, reward, terminated, truncated = single.step(action)
            next_observations[at][...] = observation
            rewards[at] = reward = float(reward)
            terminations[at] = terminated
            truncations[at] = truncated
            returns[at] = single.total = single.total + reward
            lengths[at] = single.length
            if terminated or truncated:
                if has_masks:
                    self._masks.ended(index, single, arrays.next_action_mask[t])
                single.begin_next()
        if has_masks:
            self._masks.stepped(singles, ~(arrays.terminated[t] | arrays.truncated[t]), arrays.next_action_mask[t])

    def _write_into(self, arrays: StepArrays) -> None:
        """Views of the arrays that are written to in a third of the time: one for each observation, flat ones else."""
        self._arrays = arrays
        observations = arrays.next_observation
        rows = [observations[t, index, ...] for t in range(len(observations)) for index in range(self.num_envs)]
        names = ("reward", "terminated", "truncated", "episode_return", "episode_length")
        flat: list[Any] = [getattr(arrays, name).reshape(-1) for name in names]
        self._written = (rows, *(memoryview(part) for part in flat))

    def mark(self) -> None:
        """Remember this moment, before a batch, for :meth:`roll_back`."""
        self._marks = [single.mark() for single in self._singles]
        self._marked_observation[...] = self.observation

    def roll_back(self) -> None:
        """After a fault: let the state be that of the mark, for a checkpoint; :meth:`start` brings the rest there."""
        for single, mark in zip(self._singles, self._marks, strict=True):
            single.roll_back(mark)
        self.observation[...] = self._marked_observation
        self._left_behind = self._state()

    def check_bounds(self, arrays: StepArrays) -> None:
        """After a batch: warn, once, of an observation outside of its space.

        No more than that: nothing here relies on the bounds, and environments of gymnasium itself leave theirs.
        """
        self._batches += 1
        if self._bounds is None or (self._batches > 100 and self._batches % CHECK_EVERY_BATCHES):
            return
        at = self._bounds.first_outside(arrays.next_observation)
        if at is not None:
            t, index, *where = at
            ends = arrays.terminated[t:, index] | arrays.truncated[t:, index]
            episode = self.episodes[index] - int(ends.sum())
            step, value = arrays.episode_length[t, index], arrays.next_observation[at]
            log.warning(
                "env %d, episode %d, step %d: the observation is %s at %s, outside of its space; training goes on, for "
                "which the bounds do not matter (this is said once)", index, episode, step, value, where,
            )  # fmt: skip
            self._bounds = None

    def row_metrics(self) -> dict[str, float]:
        """How often environments were made anew, those of the evaluation too."""
        return self.guard.row_metrics()

    def close(self) -> None:
        for single in self._singles:
            single.close()
        self.guard.watch.stop()

    def state_dict(self) -> StateDict:
        if self._left_behind is not None:
            return self._left_behind
        if self.resume_mode == "snapshot" and self._has_started:
            for single in self._singles:
                single.take_snapshot()
        return self._state()

    def _state(self) -> StateDict:
        return {
            "mode": self.resume_mode,
            "has_started": self._has_started,
            "observation": self.observation.copy(),
            "episodes": self.episodes,
            "returns": [single.total for single in self._singles],
            "lengths": [single.length for single in self._singles],
            "within": [single.kept() if self._has_started else None for single in self._singles],
            "guard": self.guard.state_dict(),
        }

    def marked_state(self) -> StateDict:
        """What :meth:`state_dict` was at the mark, if there is one; nothing is rolled back."""
        if not self._marks or self._left_behind is not None:
            return self.state_dict()
        now, observation = [single.mark() for single in self._singles], self.observation.copy()
        self.roll_back()
        state, self._left_behind = self._state(), None
        for single, mark in zip(self._singles, now, strict=True):
            single.roll_back(mark)
        self.observation[...] = observation
        return state

    def count_faults(self, counts: dict[str, int]) -> None:
        """Go on counting from there, what the parts count left out."""
        self.guard.load_state_dict(counts)

    def joined(self, states: Sequence[StateDict]) -> StateDict:
        """One state of all environments, from those of their parts in order; what is counted here, too, is in it."""
        guards = [self.guard.state_dict(), *(state["guard"] for state in states)]
        return {
            "mode": self.resume_mode,
            "has_started": any(state["has_started"] for state in states),
            "observation": np.concatenate([state["observation"] for state in states]),
            **{name: [value for state in states for value in state[name]] for name in _LISTS},
            "guard": {name: sum(guard[name] for guard in guards) for name in guards[0]},
        }

    def share(self, state: StateDict, first: int, num_envs: int) -> StateDict:
        """Of a state of all environments, that of the part from number ``first`` on; the first has all the counts."""
        here = slice(first, first + num_envs)
        guard = state["guard"] if first == 0 else dict.fromkeys(state["guard"], 0)
        own = {name: state[name][here] for name in ("observation", *_LISTS)}
        return {"mode": state["mode"], "has_started": state["has_started"], "guard": guard, **own}

    def load_state_dict(self, state: StateDict) -> None:
        self.complete()
        self.guard.load_state_dict(state["guard"])
        for single, episode in zip(self._singles, state["episodes"], strict=True):
            single.episode = episode
        self._has_started, self._left_behind = False, None
        if state["has_started"]:
            was_watched = self.guard.watch.is_running
            try:
                self._bring_back(state)
            finally:
                if not was_watched:
                    self.guard.watch.stop()

    def _bring_back(self, state: StateDict) -> None:
        self.start()
        for index, single in enumerate(self._singles):
            if single.bring_back(state["mode"], state["within"][index], state["observation"][index]):
                single.total, single.length = state["returns"][index], state["lengths"][index]
            else:
                single.begin()
        self._masks.read(self._singles)


def _maker(make: Makers, index: int) -> Callable[[], gymnasium.Env]:
    return make if callable(make) else make[index % len(make)]


def make_environment(
    *,
    streams: Streams,
    run: Any = None,
    id: str | None = None,
    num_envs: PositiveInt = 1,
    max_episode_steps: PositiveInt | None = None,
    kwargs: dict[str, Any] | None = None,
    make: Factory | None = None,
    frame_skip: PositiveInt = 1,
    transforms: Wrappers | None = None,
    sample: Ranges | None = None,
    on_error: OnError = "raise",
    max_restarts: NonNegativeInt = 100,
    step_timeout: PositiveFloat | None = None,
) -> Environment:
    """Make ``num_envs`` environments by gymnasium id, by ``module:Id``, or by a function ``make`` that returns one.

    Args:
        run: the run's folder, which is told if an environment hangs and cannot be interrupted.
        transforms: wrappers by name, in their order; those that change rewards or lives are for training alone.
        sample: attributes of the environment and their ranges, from which each episode draws another task.
        on_error: end the run with the first failure of an environment, or make it anew and replay its episode.
        max_restarts: of a whole run; each worker process counts its own.
        step_timeout: seconds that a step, a reset or the making may take.
    """
    if (id is None) == (make is None):
        raise ConfigError("env: give either an id or make, a class or function of your own")
    if make is not None and kwargs:
        raise ConfigError("env.kwargs go with env.id; a class of your own takes its arguments beside its _target_")
    one = partial(make_env, id or "", kwargs or {}, make, max_episode_steps, frame_skip, transforms, sample=sample)
    guard = Guard(on_error, max_restarts, Watch(step_timeout, run))
    drawn = partial(make_env, id or "", {**(kwargs or {}), **DRAWN}, make and drawn_by(make), *one.args[3:])
    evaluated, drawn = (partial(made, for_evaluation=True) for made in (one, drawn))
    return Environment(one, num_envs, id, frame_skip, streams.seed, guard, evaluated, recording_make=drawn)
