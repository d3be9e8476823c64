"""cpprb's prioritized replay buffer, with batches as torch tensors and a batch of priorities written back each time."""

import numpy as np
import torch
from cpprb import PrioritizedReplayBuffer

from scripts.benchmark.loops import ACTION, BATCH_SIZE, CAPACITY, OBSERVATION, measure

torch.set_num_threads(1)
shapes = {"obs": {"shape": OBSERVATION}, "act": {"shape": ACTION}, "rew": {}, "next_obs": {"shape": OBSERVATION}}
buffer = PrioritizedReplayBuffer(CAPACITY, {**shapes, "done": {}}, alpha=0.7)
observation, following = np.random.randn(2, OBSERVATION).astype(np.float32)
action = np.zeros(ACTION, np.float32)
priorities = np.random.rand(BATCH_SIZE)


def add() -> None:
    buffer.add(obs=observation, act=action, rew=1.0, next_obs=following, done=0.0)


def sample() -> dict[str, torch.Tensor]:
    drawn = buffer.sample(BATCH_SIZE, beta=0.5)
    batch = {name: torch.from_numpy(values) for name, values in drawn.items() if name != "indexes"}
    buffer.update_priorities(drawn["indexes"], priorities)
    return batch


measure(add, sample, "cpprb")
