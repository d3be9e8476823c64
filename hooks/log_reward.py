"""The hook that logs how well the exploring policy does."""

import math
from collections import deque
from typing import Any

import torch
from tensordict import TensorDictBase

from runner.hook import TrainerHookBase
from runner.metrics import Gauge
from runner.spec import NEXT_DONE, NEXT_EPISODE_LENGTH, NEXT_EPISODE_RETURN, StateDict
from runner.types import PositiveInt


class LogReward(TrainerHookBase):
    """Logs ``train/return_mean`` and ``train/length_mean``: over the last ``window`` finished training episodes."""

    def __init__(self, window: PositiveInt = 100) -> None:
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)
        self._episodes = 0

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("pre_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any] | None:
        if self.progress.episodes == self._episodes:
            return None
        self._episodes = self.progress.episodes
        done = batch.get(NEXT_DONE)
        self.returns.extend(torch.masked_select(batch.get(NEXT_EPISODE_RETURN), done).tolist())
        self.lengths.extend(torch.masked_select(batch.get(NEXT_EPISODE_LENGTH), done).tolist())
        means = {"train/return_mean": _mean(self.returns), "train/length_mean": _mean(self.lengths)}
        return {**means, "log_pbar": True}

    def state_dict(self) -> StateDict:
        return {"returns": list(self.returns), "lengths": list(self.lengths), "episodes": self._episodes}

    def load_state_dict(self, state: StateDict) -> None:
        for name in ("returns", "lengths"):
            recent = getattr(self, name)
            recent.clear()
            recent.extend(state[name])
        self._episodes = state["episodes"]


def _mean(values: deque[float]) -> Gauge:
    return Gauge(math.fsum(values) / len(values))
