"""Our replay buffer, given batches of one env step as a collector gives them."""

import torch

from runner.builders import make_replay_buffer
from scripts.benchmark.loops import BATCH_SIZE, CAPACITY, measure
from scripts.benchmark.peers.env_step import BATCH

torch.set_num_threads(1)
source = make_replay_buffer(capacity=CAPACITY, batch_size=BATCH_SIZE)
measure(lambda: source.extend(BATCH), source.sample, "tensordict")
