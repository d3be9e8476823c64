"""One instance of an environment: every call is watched and checked, and what goes wrong is named."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np

from runner.envs.checks import FAULTS, Checker, described, late
from runner.envs.guard import Guard
from runner.envs.gym import wrappers_of
from runner.envs.masks import METHOD, checked_mask, mask_function
from runner.envs.transforms import LifeLoss
from runner.spec import ConfigError, EnvFault, EnvSpec

log = logging.getLogger(__name__)

Outcome = tuple[Any, Any, Any, Any]
"""Observation, reward, terminated, truncated."""


class Instance:
    """Makes an environment, and makes it anew; ``episode`` (``None``: the trial one), ``seed`` and ``length`` name it.

    Args:
        make: makes one.
        name: for whoever has to mend it.
        describe: reads the spec off it.
        guard: what to do when it fails.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        name: str,
        describe: Callable[[gymnasium.Env], EnvSpec],
        guard: Guard,
    ) -> None:
        self._make, self.name, self._describe = make, name, describe
        self.guard, self._watch = guard, guard.watch
        self.episode: int | None = 0
        self.seed: int | None = None
        self.length = 0
        self._doing, self._calls = "step", 0
        self._env: gymnasium.Env | None = None
        self.renew()
        self.checker = Checker(self.spec)

    @property
    def env(self) -> gymnasium.Env:
        assert self._env is not None, f"{self.name} was closed"
        return self._env

    def renew(self) -> None:
        """Close the instance that failed, if there is one, and make another, which may fail as well."""
        self.close()
        while self._env is None:
            try:
                self._env = self._made()
            except ConfigError:
                raise
            except FAULTS as error:
                self.guard.allow_restart(self.fault("making it", error), error)

    def _made(self) -> gymnasium.Env:
        self._enter("making it")
        try:
            env = self._make()
            self.spec = self._describe(env)
            self._env_step = env.step
            self._action_masks = mask_function(env)
            self._life = next((one for one in wrappers_of(env) if isinstance(one, LifeLoss)), None)
        finally:
            self._watch.inside, self._doing = None, "step"
        return env

    def close(self) -> None:
        """Close it; that it fails even at this is only worth a line in the log."""
        env, self._env = self._env, None
        if env is None:
            return
        self._enter("close")
        try:
            env.close()
        except FAULTS as error:
            log.info("%s", self.fault("close", error))
        finally:
            self._watch.inside, self._doing = None, "step"

    def try_reset(self, seed: int) -> np.ndarray:
        """The first observation of the episode of that seed; raises ``EnvFault``."""
        self.seed, self.length = seed, 0
        self._enter("reset")
        try:
            return self.checker.check_reset(self.env.reset(seed=seed))
        except FAULTS as error:
            raise self.fault("reset", error) from error
        finally:
            self._watch.inside, self._doing = None, "step"

    @property
    def goes_on(self) -> bool:
        """Whether what has ended is a life, and not the game."""
        return self._life is not None and self._life.goes_on

    def try_next_life(self) -> np.ndarray:
        """The first observation of the next life of a game that goes on; raises ``EnvFault``."""
        self.length = 0
        self._enter("reset")
        try:
            return self.checker.check_reset(self.env.reset())
        except FAULTS as error:
            raise self.fault("reset", error) from error
        finally:
            self._watch.inside, self._doing = None, "step"

    def try_step(self, action: Any) -> Outcome:
        """The outcome of a step; raises ``EnvFault``."""
        self._enter("step")
        try:
            observation, reward, terminated, truncated, _ = self._env_step(action)
            observation = self.checker.check_step((observation, reward, terminated, truncated))
        except FAULTS as error:
            raise self.fault("step", error) from error
        finally:
            self._watch.inside, self._doing = None, "step"
        self.length += 1
        return observation, reward, terminated, truncated

    def try_mask(self, is_over: bool = False) -> np.ndarray:
        """Which actions can be taken now, ``[A]``; raises ``EnvFault``."""
        assert self._action_masks is not None
        self._enter(METHOD)
        try:
            return checked_mask(self._action_masks(), self.spec.num_actions or 0, is_over)
        except FAULTS as error:
            raise self.fault(METHOD, error) from error
        finally:
            self._watch.inside, self._doing = None, "step"

    def follow(self, actions: Iterable[Any]) -> Any:
        """Take steps whose outcomes are known to be good; the last observation, if any; raises ``EnvFault``.

        Of a game with lives, they go from one to the next.
        """
        observation = None
        self._enter("step")
        try:
            for action in actions:
                observation, _, terminated, truncated, _ = self._env_step(action)
                self.length += 1
                if (terminated or truncated) and self.goes_on:
                    observation = self.env.reset()[0]
        except FAULTS as error:
            raise self.fault("step", error) from error
        finally:
            self._watch.inside, self._doing = None, "step"
        return observation

    def _enter(self, doing: str) -> None:
        """What is done from now on, until ``inside`` is cleared, is the environment's doing.

        That is no method: a late deadline could interrupt the call of it.
        """
        self._watch.start()
        self._doing = doing
        self._calls += 1
        self._watch.inside = self

    def place(self, doing: str = "step") -> str:
        """Which environment, episode and step (the one under way) this is."""
        episode = "trial episode" if self.episode is None else f"episode {self.episode}"
        seed = "" if self.seed is None else f" (seed {self.seed})"
        return f"{self.name}, {episode}{seed}, step {self.length + 1 if doing == 'step' else self.length}"

    def fault(self, doing: str, error: BaseException) -> EnvFault:
        """What went wrong, in one line."""
        return EnvFault(f"{self.place(doing)}: {described(doing, error, self._watch.seconds)}")

    def call(self) -> tuple[Any, ...]:
        """Which call is under way: another one than this, if it is not the same."""
        return self._calls, self.episode, self.length

    def late(self, seconds: float, where: str) -> str:
        """In one line that the call under way hangs."""
        return f"{self.place(self._doing)}: {late(self._doing, seconds, where)}"
