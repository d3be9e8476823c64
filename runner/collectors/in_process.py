"""Collection in the trainer's own process."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_EPISODE_LENGTH,
    NEXT_EPISODE_RETURN,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    NEXT_TRUNCATED,
    OBSERVATION,
    Actor,
    EnvFault,
    EnvSpec,
    Progress,
    StateDict,
)


class VectorEnvironment(Protocol):
    """Environments that step together; see ``runner.envs.vector.Environment``."""

    spec: EnvSpec
    num_envs: int
    observation: np.ndarray
    resume_mode: str

    def start(self) -> None: ...

    def step(self, actions: list[Any], arrays: Any, t: int) -> None: ...

    def mark(self) -> None: ...

    def roll_back(self) -> None: ...

    def check_bounds(self, arrays: Any) -> None: ...

    def row_metrics(self) -> dict[str, float]: ...

    def close(self) -> None: ...

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class Arrays(NamedTuple):
    """The memory of one batch, ``[T, N, ...]`` each, written in place step by step."""

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray

    @classmethod
    def allocate(cls, steps: int, num_envs: int, spec: EnvSpec) -> "Arrays":
        shape = steps, num_envs
        observation = (*shape, *spec.observation_shape), spec.observation_dtype
        return cls(
            observation=np.zeros(*observation),
            action=np.zeros((*shape, *spec.action_shape), spec.action_dtype),
            next_observation=np.zeros(*observation),
            reward=np.zeros(shape, np.float32),
            terminated=np.zeros(shape, np.bool_),
            truncated=np.zeros(shape, np.bool_),
            episode_return=np.zeros(shape, np.float64),
            episode_length=np.zeros(shape, np.int64),
        )


class InProcessCollector:
    """Yields batches ``[N, T]`` of ``frames_per_batch`` env steps, without end.

    Every batch is a new TensorDict over the same memory, which the next one overwrites: copy what you keep.

    Args:
        environment: steps ``N`` environments together.
        policy: its network is the learner's own, so that new weights need no sending.
        frames_per_batch: env steps of all environments together, a multiple of N.
        init_random_frames: env steps at the start of the run whose actions are random.
        progress: the run's counters, which exploration follows.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        policy: Actor,
        frames_per_batch: int,
        init_random_frames: int = 0,
        progress: Progress | None = None,
    ) -> None:
        num_envs = environment.num_envs
        if frames_per_batch % num_envs:
            raise ValueError(
                f"collector.frames_per_batch={frames_per_batch} is not a multiple of env.num_envs={num_envs}"
            )
        if init_random_frames and policy.exploration is None:
            raise ValueError(
                f"collector.init_random_frames={init_random_frames} needs an exploration to draw the actions"
            )
        self.environment, self.policy = environment, policy
        self.init_random_frames = init_random_frames
        self.frames_per_batch = frames_per_batch
        self.progress = progress or Progress(frame_skip=environment.spec.frame_skip)
        self._steps = frames_per_batch // num_envs
        self._arrays = Arrays.allocate(self._steps, num_envs, environment.spec)
        self._done = np.zeros((self._steps, num_envs), np.bool_)
        self.batch = self._wrap()

    def __iter__(self) -> Iterator[TensorDict]:
        self.environment.start()
        while True:
            yield self.collect()

    def collect(self) -> TensorDict:
        """Play the next batch. An environment that fails for good leaves the state as it was before the batch."""
        policy_state = self.policy.state_dict()
        self.environment.mark()
        try:
            self._play()
        except EnvFault:
            self.environment.roll_back()
            self.policy.load_state_dict(policy_state)
            raise
        self.environment.check_bounds(self._arrays)
        return self.batch.copy()

    def _play(self) -> None:
        arrays, environment = self._arrays, self.environment
        is_random, random_actions = self._plan()
        played = []
        for t in range(self._steps):
            arrays.observation[t] = environment.observation
            actions = self._act(is_random[t], random_actions[t])
            played.append(actions)
            environment.step(actions, arrays, t)
        arrays.action[:] = played
        np.logical_or(arrays.terminated, arrays.truncated, out=self._done)

    def _plan(self) -> tuple[list[list[bool]], list[list[Any]]]:
        """Which actions of the batch are random, and which those are, drawn at once for all ``[T, N]``."""
        shape = self._steps, self.environment.num_envs
        if self.policy.exploration is None:
            return [[False] * shape[1]] * shape[0], [[None] * shape[1]] * shape[0]
        plan = self.policy.exploration.plan(shape, self.progress.env_steps, self.init_random_frames)
        return plan.is_random.tolist(), plan.actions.tolist()

    def _act(self, is_random: list[bool], random_actions: list[Any]) -> list[Any]:
        if all(is_random):
            return random_actions
        greedy = self.policy.greedy(self.environment.observation)
        if not any(is_random):
            return greedy
        return [
            other if chosen else best for chosen, other, best in zip(is_random, random_actions, greedy, strict=True)
        ]

    def _wrap(self) -> TensorDict:
        """The arrays as one TensorDict ``[N, T]``, without a copy."""
        arrays = self._arrays
        keyed: dict[NestedKey, np.ndarray] = {
            OBSERVATION: arrays.observation,
            ACTION: arrays.action,
            NEXT_OBSERVATION: arrays.next_observation,
            NEXT_REWARD: arrays.reward,
            NEXT_TERMINATED: arrays.terminated,
            NEXT_TRUNCATED: arrays.truncated,
            NEXT_DONE: self._done,
            NEXT_EPISODE_RETURN: arrays.episode_return,
            NEXT_EPISODE_LENGTH: arrays.episode_length,
        }
        batch = TensorDict(batch_size=[self.environment.num_envs, self._steps])
        for key, array in keyed.items():
            batch.set(key, torch.from_numpy(array).transpose(0, 1))
        return batch

    @property
    def resume_mode(self) -> str:
        """How environments in mid-episode are brought back: ``snapshot``, ``tape`` or ``none``."""
        return self.environment.resume_mode

    def row_metrics(self) -> dict[str, float]:
        """For every row: what the environment counts."""
        return self.environment.row_metrics()

    def update_policy_weights_(self) -> None:
        """Nothing to do: the policy's network is the learner's."""

    def shutdown(self) -> None:
        self.environment.close()

    def state_dict(self) -> StateDict:
        return {"environment": self.environment.state_dict(), "policy": self.policy.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.environment.load_state_dict(state["environment"])
        self.policy.load_state_dict(state["policy"])
