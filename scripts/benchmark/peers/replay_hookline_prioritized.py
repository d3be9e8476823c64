"""Our replay buffer, drawing by priority; a batch of errors is written back each time, as the loss does it."""

import torch

from runner.builders import make_replay_buffer
from scripts.benchmark.loops import BATCH_SIZE, CAPACITY, measure
from scripts.benchmark.peers.env_step import BATCH

torch.set_num_threads(1)
source = make_replay_buffer(capacity=CAPACITY, batch_size=BATCH_SIZE, sampler="prioritized", alpha=0.7, beta=0.5)
errors = torch.rand(BATCH_SIZE)


def sample() -> None:
    sub_batch = source.sample()
    sub_batch.set("td_error", errors)
    source.update_priority(sub_batch)


measure(lambda: source.extend(BATCH), sample, "tensordict")
