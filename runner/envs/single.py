"""One environment and its running episode, which goes on in a fresh instance when the environment fails."""

import logging
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from runner.envs.checks import FAULTS, LARGEST
from runner.envs.guard import Guard
from runner.envs.instance import Instance, Outcome
from runner.envs.restore import snapshot_of
from runner.seeding import unchanged_globals
from runner.spec import EnvFault, EnvSpec

log = logging.getLogger(__name__)

LONG_EPISODE = 100_000
"""Steps after which an episode is said to be long, and its actions are no longer kept."""


class Mark(NamedTuple):
    """Where an episode stood; its tape may have grown since, but was not replaced."""

    episode: int | None
    seed: int | None
    length: int
    total: float
    tape: list[Any] | None
    taped: int
    snapshot: Any


class Single(Instance):
    """``row`` is the current observation, ``total`` the return so far.

    The running episode is brought back, in a fresh instance or after a kill, by its seed (or a snapshot) and the
    actions since, its ``tape``; that is ``None`` where the episode cannot be brought back.

    Args:
        seed_of: the seed of each episode.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        name: str,
        describe: Callable[[gymnasium.Env], EnvSpec],
        guard: Guard,
        seed_of: Callable[[int], int],
    ) -> None:
        super().__init__(make, name, describe, guard)
        self._seed_of = seed_of
        self.total = 0.0
        self.tape: list[Any] | None = None
        self.snapshot: Any = None
        self.row = np.zeros(self.spec.observation_shape, self.spec.observation_dtype)
        self._mode, self._is_kept, self._is_known_long = "none", False, False
        self._is_cut, self._last_mask = False, np.ones(self.spec.num_actions or 0, np.bool_)
        self._shape: tuple[int, ...] = self.spec.observation_shape
        self._dtype: np.dtype | None = None
        self._total, self._is_small = self.checker.total, self.checker.is_small

    def resume_by(self, mode: str, is_kept: bool = True) -> None:
        """How its episodes are brought back, and whether to keep what that takes."""
        self._mode, self._is_kept = mode, is_kept and mode != "none"

    def step(self, action: Any) -> Outcome:
        """Take one step. An environment that fails raises ``EnvFault``, or is made anew and asked again.

        If it fails again, the episode ends here as if by a time limit: the same observation once more, reward 0.
        """
        watch = self._watch
        watch.inside = self
        try:
            reward: Any
            observation, reward, terminated, truncated, _ = self._env_step(action)
            try:
                is_good = (
                    observation.dtype is self._dtype
                    and observation.shape == self._shape
                    # A number that is not finite makes the sum so, too.
                    and -LARGEST
                    < (sum(observation.tolist(), reward) if self._is_small else self._total(observation, reward))
                    < LARGEST
                )
            except (AttributeError, TypeError, ValueError):  # it is no array, or no number; which, is found out below
                is_good = False
            if not is_good:
                observation = self._look_closely(observation, reward, terminated, truncated)
        except FAULTS as error:
            return self._mend(action, error)
        except BaseException:
            watch.inside = None
            raise
        watch.inside = None
        self.length += 1
        if self.tape is not None:
            self.tape.append(action)
        self.row[...] = observation
        return observation, reward, terminated, truncated

    def _look_closely(self, *outcome: Any) -> np.ndarray:
        observation = self.checker.check_step(outcome)
        self._dtype = observation.dtype if self.checker.fits(observation.dtype) else None
        return observation

    def _mend(self, action: Any, error: BaseException) -> Outcome:
        self._watch.inside = None
        fault = self.fault("step", error)
        self.guard.allow_restart(fault, error)
        with unchanged_globals():  # a run without the fault would have drawn nothing
            if self.tape is not None:
                try:
                    self._play_again()
                    outcome = self.try_step(action)
                except EnvFault as again:
                    self.guard.allow_restart(again, again.__cause__)
                else:
                    self.tape.append(action)
                    self.row[...] = outcome[0]
                    return outcome
            self.guard.cut(self.place())
            self.renew()
        self._is_cut = True
        self.length += 1
        return self.row.copy(), 0.0, False, True

    def mask(self, is_over: bool = False) -> np.ndarray:
        """Which actions can be taken now, ``[A]``; an environment that fails is made anew and asked again.

        Args:
            is_over: the episode has ended, and no other has begun.
        """
        if self._is_cut:  # the observation is the one before once more
            return self._last_mask
        try:
            self._last_mask = self.try_mask(is_over)
        except EnvFault as fault:
            if self.tape is None:
                raise
            self.guard.allow_restart(fault, fault.__cause__)
            with unchanged_globals():
                self._play_again()
                self._last_mask = self.try_mask(is_over)
        return self._last_mask

    def _play_again(self) -> None:
        """Bring a fresh instance to where the episode was."""
        length = self.length
        self.renew()
        try:
            assert self.seed is not None
            observation = self._follow_from(self.try_reset(self.seed), self.snapshot, self.tape or [])
        finally:
            self.length = length
        if observation is not None and not np.array_equal(np.asarray(observation, self.row.dtype), self.row):
            raise EnvFault(f"{self.place()}: its episode, played again, comes to another observation")

    def _follow_from(self, first: np.ndarray, snapshot: Any, tape: list[Any]) -> Any:
        """The observation at the end; ``None`` where a snapshot without any action since tells none."""
        observation: Any = first
        if snapshot is not None:
            own = snapshot_of(self.env)
            assert own is not None
            own.set(snapshot)
            observation = None
        return self.follow(tape) if tape else observation

    def reset(self, seed: int) -> np.ndarray:
        """Begin the episode of that seed; an environment that fails is made anew until it succeeds."""
        self.episode, self.seed = (-1 if self.episode is None else self.episode) + 1, seed
        return self._begin(may_move_on=False)

    def begin_next(self) -> np.ndarray:
        """The current episode is over: begin another, or the next life of the same game, whose tape goes on."""
        if self.goes_on and self._begin_life():
            return self.row
        self.episode = (self.episode or 0) + 1
        return self.begin()

    def _begin_life(self) -> bool:
        """Begin the next life, in a fresh instance if need be; false where the game cannot be gone on with."""
        try:
            self.row[...] = self.try_next_life()
        except EnvFault as fault:
            self.guard.allow_restart(fault, fault.__cause__)
            with unchanged_globals():
                try:
                    self.renew()
                    if self.tape is None or self.seed is None:
                        return False
                    self.row[...] = self._follow_from(self.try_reset(self.seed), self.snapshot, self.tape)
                except EnvFault as again:
                    self.guard.allow_restart(again, again.__cause__)
                    self.renew()
                    return False
        self.total, self.length = 0.0, 0
        return True

    def begin(self) -> np.ndarray:
        """Begin the current episode or, if that fails twice, the next one that can be begun."""
        self.seed = self._seed_of(self.episode or 0)
        return self._begin(may_move_on=True)

    def _begin(self, may_move_on: bool) -> np.ndarray:
        self.total, self.snapshot, self._is_cut = 0.0, None, False
        self.tape = [] if self._is_kept else None
        self.row[...] = self._first_observation(may_move_on)
        if self._is_kept and self._mode == "snapshot":
            self.take_snapshot()
        return self.row

    def _first_observation(self, may_move_on: bool) -> np.ndarray:
        for attempt in count(1):
            assert self.seed is not None
            try:
                return self.try_reset(self.seed)
            except EnvFault as fault:
                self.guard.allow_restart(fault, fault.__cause__)
                with unchanged_globals():
                    self.renew()
            if may_move_on and attempt % 2 == 0:
                self.episode = (self.episode or 0) + 1
                self.seed = self._seed_of(self.episode)
        raise AssertionError

    def take_snapshot(self) -> None:
        """Keep what comes from now on, instead of from the beginning of the episode."""
        own = snapshot_of(self.env)
        try:
            self._enter("taking a snapshot")
            self.snapshot, self.tape = (own.get() if own else None), []
        except FAULTS as error:
            log.warning("%s: a resumed run restarts this episode", self.fault("taking a snapshot", error))
            self.tape = None
        finally:
            self._watch.inside, self._doing = None, "step"

    def kept(self) -> Any:
        """What a checkpoint holds of the running episode; ``None`` where it will have to restart."""
        if self.tape is None:
            return None
        shape = (len(self.tape), *self.spec.action_shape)
        tape = np.array(self.tape, self.spec.action_dtype).reshape(shape)
        return {"snapshot": self.snapshot, "tape": tape} if self._mode == "snapshot" else tape

    def bring_back(self, mode: str, kept: Any, expected: np.ndarray) -> bool:
        """Go on with the current episode, just begun, where ``kept`` leads; false where it does not."""
        if mode == "none" or kept is None:
            return False
        try:
            snapshot, tape = (kept["snapshot"], kept["tape"]) if mode == "snapshot" else (None, kept)
            actions = list(tape) if self.spec.action_shape else tape.tolist()
            observation = self._follow_or_restart(snapshot, actions)
        except FAULTS as error:  # foreign code may raise anything
            log.warning("%s could not be brought back (%s): its episode restarts", self.name, error)
            return False
        if observation is not None and not np.array_equal(np.asarray(observation, self.row.dtype), expected):
            log.warning("%s did not replay to the observation that was saved: its episode restarts", self.name)
            return False
        self.row[...] = expected
        self.snapshot, self.tape = snapshot, actions if self._is_kept else None
        return True

    def _follow_or_restart(self, snapshot: Any, tape: list[Any]) -> Any:
        try:
            return self._follow_from(self.row.copy(), snapshot, tape)
        except EnvFault as fault:
            if not self.guard.restarting:
                raise
            self.guard.allow_restart(fault, fault.__cause__)
            self.renew()
            return self._follow_from(self._first_observation(may_move_on=False), snapshot, tape)

    def mark(self) -> Mark:
        """Where the episode stands, for :meth:`roll_back`."""
        if self.length > LONG_EPISODE:
            self._shorten()
        taped = len(self.tape) if self.tape else 0
        return Mark(self.episode, self.seed, self.length, self.total, self.tape, taped, self.snapshot)

    def roll_back(self, mark: Mark) -> None:
        """Let what is known of the episode be as it was; the instance stays where it is."""
        self.episode, self.seed, self.length, self.total, tape, taped, self.snapshot = mark
        self.tape = tape[:taped] if tape is not None else None

    def _shorten(self) -> None:
        """Keep the memory of an episode without an end within bounds."""
        has_limit = self.spec.max_episode_steps is not None
        lost = self.tape is not None and self._mode == "tape"
        if lost:
            self.tape = None
        elif self.tape is not None and len(self.tape) > LONG_EPISODE:
            self.take_snapshot()
        if not self._is_known_long and (lost or not has_limit):
            self._is_known_long = True
            advice = "" if has_limit else "; if it never ends, env.max_episode_steps=1000 ends it"
            loss = "; too long to be replayed: a resumed run restarts it" if lost else ""
            log.warning("%s: this episode has lasted more than %d steps%s%s", self.place(), LONG_EPISODE, advice, loss)
