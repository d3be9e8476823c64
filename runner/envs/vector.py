"""Several environments stepped in this process by a plain loop, faster for cheap ones than any vector class."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np

from runner.envs.gym import describe, make_env
from runner.envs.restore import probe, snapshot_of
from runner.seeding import Streams, env_seed
from runner.spec import ConfigError, StateDict
from runner.types import Factory, PositiveInt

log = logging.getLogger(__name__)


class StepArrays(Protocol):
    """Where the outcomes of a batch of steps are written, each ``[T, N, ...]``."""

    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray


class Environment:
    """``N`` gymnasium environments in step, each episode reset with a seed of its own, without autoreset of their own.

    ``observation`` is the current one of each, ``[N, ...]``: after an episode's end the first of the next episode,
    while the last one of the ended episode is what :meth:`step` wrote as next observation.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env], num_envs: int, id: str | None, frame_skip: int, seed: int
    ) -> None:
        self.make, self.num_envs = make, num_envs
        self.envs = [make() for _ in range(num_envs)]
        self.spec = describe(self.envs[0], id or type(self.envs[0].unwrapped).__name__, frame_skip)
        self.resume_mode = probe(self.envs[0], self.spec)
        self.observation = np.zeros((self.num_envs, *self.spec.observation_shape), self.spec.observation_dtype)
        self.episodes = [0] * self.num_envs
        self._seed: Callable[[int], int] = lambda index: env_seed(seed, "env", index, self.episodes[index])
        self._tapes: list[list[Any]] = [[] for _ in self.envs]
        self._returns, self._lengths = [0.0] * self.num_envs, [0] * self.num_envs
        self._steps = [env.step for env in self.envs]
        self._is_taping = self.resume_mode == "tape"
        self._has_started = False

    def start(self) -> None:
        """Reset every environment to the beginning of its current episode, unless that was done before."""
        if not self._has_started:
            self._has_started = True
            for index in range(self.num_envs):
                self._begin_episode(index)

    def _begin_episode(self, index: int) -> None:
        self.observation[index] = self.envs[index].reset(seed=self._seed(index))[0]
        self._tapes[index] = []
        self._returns[index], self._lengths[index] = 0.0, 0

    def step(self, actions: list[Any], arrays: StepArrays, t: int) -> None:
        """Take one step in every environment and write the outcomes into row ``t`` of ``arrays``."""
        for index, action in enumerate(actions):
            observation, reward, terminated, truncated, _ = self._steps[index](action)
            if self._is_taping:
                self._tapes[index].append(action)
            self._returns[index] += float(reward)
            self._lengths[index] += 1
            at = t, index
            arrays.next_observation[at] = observation
            arrays.reward[at] = reward
            arrays.terminated[at] = terminated
            arrays.truncated[at] = truncated
            arrays.episode_return[at] = self._returns[index]
            arrays.episode_length[at] = self._lengths[index]
            if terminated or truncated:
                self.episodes[index] += 1
                self._begin_episode(index)
            else:
                self.observation[index] = observation

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def state_dict(self) -> StateDict:
        return {
            "mode": self.resume_mode,
            "has_started": self._has_started,
            "observation": self.observation.copy(),
            "episodes": list(self.episodes),
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "within": [self._episode_state(index) for index in range(self.num_envs)],
        }

    def _episode_state(self, index: int) -> Any:
        if self.resume_mode == "snapshot":
            snapshot = snapshot_of(self.envs[index])
            return snapshot.get() if snapshot and self._has_started else None
        shape = (len(self._tapes[index]), *self.spec.action_shape)
        return np.array(self._tapes[index], self.spec.action_dtype).reshape(shape)

    def load_state_dict(self, state: StateDict) -> None:
        self.episodes = list(state["episodes"])
        self._has_started = False
        if not state["has_started"]:
            return
        self.start()
        for index, within in enumerate(state["within"]):
            if self._can_restore(index, state["mode"], within, state["observation"][index]):
                self._returns[index], self._lengths[index] = state["returns"][index], state["lengths"][index]
            else:
                self._begin_episode(index)

    def _can_restore(self, index: int, mode: str, within: Any, expected: np.ndarray) -> bool:
        if mode == "none":
            return False
        try:
            self._restore(index, mode, within, expected)
        except Exception as error:  # foreign code may raise anything
            log.warning("env %d could not be brought back (%s): its episode restarts", index, error)
            return False
        if not np.array_equal(self.observation[index], expected):
            log.warning("env %d did not replay to the observation that was saved: its episode restarts", index)
            return False
        return True

    def _restore(self, index: int, mode: str, within: Any, expected: np.ndarray) -> None:
        if mode == "snapshot":
            snapshot = snapshot_of(self.envs[index])
            assert snapshot is not None
            snapshot.set(within)
            self.observation[index] = expected
            return
        for action in list(within) if self.spec.action_shape else within.tolist():
            self.observation[index] = self._steps[index](action)[0]
            self._tapes[index].append(action)


def make_environment(
    *,
    streams: Streams,
    id: str | None = None,
    num_envs: PositiveInt = 1,
    max_episode_steps: PositiveInt | None = None,
    kwargs: dict[str, Any] | None = None,
    make: Factory | None = None,
    frame_skip: PositiveInt = 1,
) -> Environment:
    """Make ``num_envs`` environments by gymnasium id, by ``module:Id``, or by a function ``make`` that returns one."""
    if (id is None) == (make is None):
        raise ConfigError("env: give either an id or make, a class or function of your own")
    if make is not None and kwargs:
        raise ConfigError("env.kwargs go with env.id; a class of your own takes its arguments beside its _target_")
    one = partial(make_env, id or "", kwargs or {}, make, max_episode_steps, frame_skip)
    return Environment(one, num_envs, id, frame_skip, streams.seed)
