"""Our replay buffer, given batches of one env step as a collector gives them."""

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
source = make_replay_buffer(capacity=CAPACITY, batch_size=BATCH_SIZE)
measure(lambda: source.extend(batch), source.sample, "tensordict")
