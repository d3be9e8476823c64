"""Parts of a user's that make a run depend on more of its state than ours do."""

import os
import random
import signal
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase

from runner.hook import StatelessHook
from runner.metrics import Gauge


class DrawsFromGlobals(StatelessHook):
    """Logs numbers drawn from the process-wide generators, as user code does that knows no others, and the batch."""

    def register(self, trainer: Any, name: str | None = None) -> None:
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("post_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        return {
            "drawn/python": random.gauss(0.0, 1.0),
            "drawn/numpy": np.random.standard_normal(),
            "drawn/torch": torch.rand(()),
            **{f"drawn/{key}": Gauge(value.double().mean()) for key, value in batch.items(True, True)},
            "drawn/numel": batch.numel(),
        }


class Preempted(StatelessHook):
    """Stands for a scheduler that wants the machine back ``at`` env steps. A run without it has the same state."""

    def __init__(self, at: int, point: str) -> None:
        self.at, self.point = at, point

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_op(self.point, self)

    def __call__(self, batch: TensorDictBase) -> None:
        if self.progress.env_steps == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
