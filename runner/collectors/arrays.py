"""The memory of one batch of env steps, and how it looks as a TensorDict."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    EnvSpec,
)

Planned = tuple[list[list[bool]], list[list[Any]]]
"""Which actions of a batch are random, ``[T][N]``, and which those are."""
Zeros = Callable[[tuple[int, ...], Any], np.ndarray]
"""Makes an array of a shape and dtype."""


class Arrays(NamedTuple):
    """The memory of one batch, ``[T, N, ...]`` each, written in place step by step."""

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray

    @classmethod
    def allocate(cls, steps: int, num_envs: int, spec: EnvSpec, zeros: Zeros = np.zeros) -> "Arrays":
        """For ``steps`` of ``num_envs`` environments; ``zeros`` makes each array."""
        shape = steps, num_envs
        observation = (*shape, *spec.observation_shape), spec.observation_dtype
        return cls(
            observation=zeros(*observation),
            action=zeros((*shape, *spec.action_shape), spec.action_dtype),
            next_observation=zeros(*observation),
            reward=zeros(shape, np.float32),
            terminated=zeros(shape, np.bool_),
            truncated=zeros(shape, np.bool_),
            done=zeros(shape, np.bool_),
            episode_return=zeros(shape, np.float64),
            episode_length=zeros(shape, np.int64),
        )

    def as_batch(self) -> TensorDict:
        """The arrays as one TensorDict ``[N, T]``, without a copy."""
        keyed: dict[NestedKey, np.ndarray] = {
            OBSERVATION: self.observation,
            ACTION: self.action,
            NEXT_OBSERVATION: self.next_observation,
            NEXT_REWARD: self.reward,
            NEXT_TERMINATED: self.terminated,
            NEXT_TRUNCATED: self.truncated,
            NEXT_DONE: self.done,
            NEXT_EPISODE_RETURN: self.episode_return,
            NEXT_EPISODE_LENGTH: self.episode_length,
        }
        steps, num_envs = self.reward.shape
        batch = TensorDict(batch_size=[num_envs, steps])
        for key, array in keyed.items():
            batch.set(key, torch.from_numpy(array).transpose(0, 1))
        return batch
