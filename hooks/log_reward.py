"""The hook that logs how well the exploring policy does."""

import math
from collections import deque
from typing import Any

import torch
from tensordict import TensorDictBase

from runner.hook import Hook
from runner.metrics import Gauge
from runner.spec import NEXT_DONE, NEXT_EPISODE_LENGTH, NEXT_EPISODE_RETURN, StateDict
from runner.types import Every, PositiveInt


class LogReward(Hook):
    """Logs ``train/return_mean`` and ``train/length_mean``: over the last ``window`` finished training episodes.

    Every episode is counted; ``every`` says how often the means are logged, if there is a new one.
    """

    remembers = ("episodes", "has_new")

    def __init__(self, window: PositiveInt = 100, every: Every | None = None) -> None:
        super().__init__(every)
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)
        self.episodes = 0
        self.has_new = False

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("pre_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any] | None:
        if self.progress.episodes != self.episodes:
            self._count(batch)
        if not self.has_new or (self.interval is not None and not self.interval.fires(self.progress)):
            return None
        self.has_new = False
        means = {"train/return_mean": _mean(self.returns), "train/length_mean": _mean(self.lengths)}
        return {**means, "log_pbar": True}

    def _count(self, batch: TensorDictBase) -> None:
        self.episodes, self.has_new = self.progress.episodes, True
        done = batch.get(NEXT_DONE)
        self.returns.extend(torch.masked_select(batch.get(NEXT_EPISODE_RETURN), done).tolist())
        self.lengths.extend(torch.masked_select(batch.get(NEXT_EPISODE_LENGTH), done).tolist())

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "returns": list(self.returns), "lengths": list(self.lengths)}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        for name in ("returns", "lengths"):
            recent = getattr(self, name)
            recent.clear()
            recent.extend(state[name])


def _mean(values: deque[float]) -> Gauge:
    return Gauge(math.fsum(values) / len(values))
