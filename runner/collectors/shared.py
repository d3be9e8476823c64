"""Memory that a run and its workers share: it has no name, and is gone with the last of them."""

import mmap
import time
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from runner.collectors.arrays import Arrays
from runner.spec import EnvSpec, Extra


def shared_zeros(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """An array that processes forked from now on see as well."""
    count, dtype = prod(shape), np.dtype(dtype)
    memory = mmap.mmap(-1, max(count * dtype.itemsize, 1))
    return np.frombuffer(memory, dtype, count).reshape(shape)


class Slot(NamedTuple):
    """One batch of one worker: what it is to play, ``[T, M]``, and what came of it.

    ``memory`` ``[M, ...]`` is what the policy remembers before it; ``observation`` and ``memory_after`` ``[M, ...]``
    are the current ones of each environment after the batch.
    """

    is_random: np.ndarray
    actions: np.ndarray
    noise: np.ndarray
    memory: np.ndarray
    arrays: Arrays
    observation: np.ndarray
    memory_after: np.ndarray

    @classmethod
    def allocate(cls, steps: int, num_envs: int, spec: EnvSpec, extra: Extra) -> "Slot":
        actions = (steps, num_envs, *spec.action_shape), spec.action_dtype
        observation = (num_envs, *spec.observation_shape), spec.observation_dtype
        return cls(
            is_random=shared_zeros((steps, num_envs), np.bool_),
            actions=shared_zeros(*actions),
            noise=shared_zeros((steps, num_envs, extra.noise), np.float32),
            memory=shared_zeros((num_envs, extra.memory), np.float32),
            arrays=Arrays.allocate(steps, num_envs, spec, extra, shared_zeros),
            observation=shared_zeros(*observation),
            memory_after=shared_zeros((num_envs, extra.memory), np.float32),
        )


class SharedWeights:
    """The weights that workers act by: a copy of those being trained, renewed by ``push``.

    Args:
        trained: parameters and buffers of the network that is being trained.
    """

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self._trained = [tensor.detach() for tensor in trained]
        self._shared = [_shared_like(tensor) for tensor in trained]
        self._version = shared_zeros((1,), np.int64)  # odd while a push is under way
        self._pulled = -1

    @property
    def version(self) -> int:
        """How often they have been renewed."""
        return int(self._version[0]) // 2

    def push(self) -> None:
        """Let the workers' next batches be played by the weights as they are now."""
        self.write(self._trained)

    def write(self, tensors: Sequence[Tensor]) -> None:
        """The same for the given ones."""
        self._version += 1
        torch._foreach_copy_(self._shared, [tensor.detach() for tensor in tensors])
        self._version += 1

    def read(self) -> list[Tensor]:
        """A copy."""
        return [tensor.clone() for tensor in self._shared]

    def pull(self, into: Sequence[Tensor]) -> int:
        """In a worker: copy the newest weights, never half of them, if there are newer ones; returns their version."""
        while (before := int(self._version[0])) != self._pulled:
            if before % 2 == 0:
                torch._foreach_copy_([tensor.detach() for tensor in into], self._shared)
                if int(self._version[0]) == before:
                    self._pulled = before
            else:
                time.sleep(0)
        return before // 2


def _shared_like(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
