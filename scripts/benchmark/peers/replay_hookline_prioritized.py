"""Our replay buffer, drawing by priority; a batch of errors is written back each time, as the loss does it."""

import torch
from tensordict import TensorDict

from runner.builders import make_replay_buffer
from scripts.benchmark.loops import ACTION, BATCH_SIZE, CAPACITY, OBSERVATION, measure

torch.set_num_threads(1)
flag = torch.zeros(1, 1, dtype=torch.bool)
following = {"observation": torch.randn(1, 1, OBSERVATION), "reward": torch.ones(1, 1)}
following |= {"terminated": flag, "truncated": flag, "done": flag}
row = {"observation": torch.randn(1, 1, OBSERVATION), "action": torch.randn(1, 1, ACTION), "next": following}
batch = TensorDict(row, batch_size=[1, 1])
source = make_replay_buffer(capacity=CAPACITY, batch_size=BATCH_SIZE, sampler="prioritized", alpha=0.7, beta=0.5)
errors = torch.rand(BATCH_SIZE)


def sample() -> None:
    sub_batch = source.sample()
    sub_batch.set("td_error", errors)
    source.update_priority(sub_batch)


measure(lambda: source.extend(batch), sample, "tensordict")
