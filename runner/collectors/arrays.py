"""The memory of one batch of env steps, and how it looks as a TensorDict."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from runner.spec import (
    ACTION,
    ACTION_MASK,
    MEMORY,
    NEXT_ACTION_MASK,
    NEXT_DONE,
    NEXT_EPISODE_LENGTH,
    NEXT_EPISODE_RETURN,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    NEXT_TRUNCATED,
    NO_EXTRA,
    OBSERVATION,
    POLICY_OUTPUT,
    EnvSpec,
    Extra,
)

Zeros = Callable[[tuple[int, ...], Any], np.ndarray]
"""Makes an array of a shape and dtype."""


class Planned(NamedTuple):
    """The randomness of a batch: which actions are random, ``[T][N]``, which those are, and noise ``[T, N, ...]``."""

    is_random: list[list[bool]]
    actions: list[list[Any]]
    noise: np.ndarray

    @classmethod
    def of(cls, is_random: np.ndarray, actions: np.ndarray, noise: np.ndarray, spec: EnvSpec) -> Self:
        """From arrays ``[T, N, ...]``; actions that are vectors stay arrays."""
        rows = [list(row) for row in actions] if spec.action_shape else actions.tolist()
        return cls(is_random.tolist(), rows, noise)


class Arrays(NamedTuple):
    """The memory of one batch, ``[T, N, ...]`` each, written in place step by step; what nobody needs is empty."""

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    done: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray
    policy_output: np.ndarray
    memory: np.ndarray
    action_mask: np.ndarray
    next_action_mask: np.ndarray

    @classmethod
    def allocate(
        cls, steps: int, num_envs: int, spec: EnvSpec, extra: Extra = NO_EXTRA, zeros: Zeros = np.zeros
    ) -> "Arrays":
        """For ``steps`` of ``num_envs`` environments; ``zeros`` makes each array."""
        shape = steps, num_envs
        observation = (*shape, *spec.observation_shape), spec.observation_dtype
        mask = (*shape, spec.num_actions or 0 if spec.has_action_mask else 0), np.bool_
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
            policy_output=zeros((*shape, extra.outputs), np.float32),
            memory=zeros((*shape, extra.memory), np.float32),
            action_mask=zeros(*mask),
            next_action_mask=zeros(*mask),
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
            POLICY_OUTPUT: self.policy_output,
            MEMORY: self.memory,
            ACTION_MASK: self.action_mask,
            NEXT_ACTION_MASK: self.next_action_mask,
        }
        steps, num_envs = self.reward.shape
        batch = TensorDict(batch_size=[num_envs, steps])
        for key, array in keyed.items():
            if array.size:
                batch.set(key, torch.from_numpy(array).transpose(0, 1))
        return batch
