"""One env step of one environment, as a collector gives it to our replay buffer."""

import torch
from tensordict import TensorDict

from scripts.benchmark.loops import ACTION, OBSERVATION

_flag = torch.zeros(1, 1, dtype=torch.bool)
_following = {"observation": torch.randn(1, 1, OBSERVATION), "reward": torch.ones(1, 1)}
_following |= {"terminated": _flag, "truncated": _flag, "done": _flag}
BATCH = TensorDict(
    {"observation": torch.randn(1, 1, OBSERVATION), "action": torch.randn(1, 1, ACTION), "next": _following},
    batch_size=[1, 1],
)
