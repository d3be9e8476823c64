"""The hook that gives unused GPU memory back."""

import torch

from runner.hook import Hook
from runner.types import Every


class ClearCudaCache(Hook):
    """Empties torch's cache of GPU memory before the updates of a batch; ``count`` says how often.

    For GPUs shared with other programs: torch takes the memory back as soon as it needs it, which costs time. Where
    there is no GPU, nothing is emptied.
    """

    point = "pre_optim_steps"
    remembers = ("count",)

    def __init__(self, every: Every | None = None) -> None:
        super().__init__(every)
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if torch.cuda.is_initialized():  # or else nothing is cached, and asking would start CUDA
            torch.cuda.empty_cache()
