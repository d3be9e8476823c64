"""The hook that logs how well the exploring policy does."""

import math
from collections import deque
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from runner.hook import Hook
from runner.metrics import Gauge
from runner.spec import NEXT_DONE, NEXT_EPISODE_LENGTH, NEXT_EPISODE_RETURN, NEXT_REWARD, StateDict, as_key, played
from runner.types import Every, KeyPath, PositiveInt

OF_EPISODES = (NEXT_DONE, NEXT_EPISODE_RETURN, NEXT_EPISODE_LENGTH)


class LogReward(Hook):
    """Logs ``train/return_mean`` and ``train/length_mean``: over the last ``window`` finished training episodes.

    Every episode is counted; ``every`` says how often the means are logged, if there is a new one.

    Args:
        logname: log the mean reward of each batch as well, by this name; steps that were not played are left out.
        reward_key: of that reward; a list for a nested one, the reward of the step if not given.
        log_pbar: show that mean in the progress bar.
    """

    remembers = ("episodes", "has_new")

    def __init__(
        self,
        window: PositiveInt = 100,
        every: Every | None = None,
        logname: str | None = None,
        reward_key: KeyPath | None = None,
        log_pbar: bool = False,
    ) -> None:
        super().__init__(every)
        self.logname, self.log_pbar = logname, log_pbar
        self.reward_key: NestedKey = NEXT_REWARD if reward_key is None else as_key(reward_key)
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)
        self.episodes = 0
        self.has_new = False

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("pre_steps_log", self)
        if self.logname is not None:
            trainer.register_op("pre_steps_log", self.mean_reward)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any] | None:
        if self.progress.episodes != self.episodes:
            self._count(batch)
        if not self.has_new or (self.interval is not None and not self.interval.fires(self.progress)):
            return None
        self.has_new = False
        means = {"train/return_mean": _mean(self.returns), "train/length_mean": _mean(self.lengths)}
        return {**means, "log_pbar": True}

    def _count(self, batch: TensorDictBase) -> None:
        self.episodes = self.progress.episodes
        done, returns, lengths = (played(batch, key, self.default_name()) for key in OF_EPISODES)
        self.returns.extend(torch.masked_select(returns, done).tolist())
        self.lengths.extend(torch.masked_select(lengths, done).tolist())
        self.has_new = len(self.returns) > 0  # none where the run had ended episodes before this hook came

    def mean_reward(self, batch: TensorDictBase) -> dict[str, Any] | None:
        """The mean reward of the steps that were played."""
        rewards = played(batch, self.reward_key, self.default_name()).float()
        return {str(self.logname): rewards.mean(), "log_pbar": self.log_pbar} if rewards.numel() else None

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
