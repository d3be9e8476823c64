"""The hook that scales rewards by how large they have been."""

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.hook import Hook
from runner.spec import NEXT_REWARD, NEXT_STEPS, ConfigError, played
from runner.types import Discount, Every, Fraction, PositiveFloat


class RewardNormalizer(Hook):
    """Gives updates ``scale * (reward - mean) / std`` in place of the reward; what is stored stays as it is.

    Mean and variance are of all collected rewards, those of each batch weighing ``decay`` times as much as those of
    the next; before the first batch they are 0 and 1. The sum of squared deviations is merged batch by batch (Chan,
    Golub & LeVeque 1983, eq. 2.1b) in double precision: no difference of large sums. Variance: it, divided by the
    weight less one.

    Args:
        decay: of the weight of earlier batches.
        scale: multiplies normalized rewards.
        eps: least variance.
        gamma: discount between the rewards that an n-step transition sums.
        every: how often the statistics take in a batch; rewards are normalized in each update.
    """

    remembers = ("weight", "mean", "deviations")

    def __init__(
        self,
        decay: Fraction = 0.999,
        scale: PositiveFloat = 1.0,
        eps: PositiveFloat = 1.2e-7,
        gamma: Discount = 0.99,
        reward_key: NestedKey = NEXT_REWARD,
        every: Every | None = None,
    ) -> None:
        super().__init__(every)
        self.decay, self.scale, self.eps, self.gamma, self.reward_key = decay, scale, eps, gamma, reward_key
        self.weight = self.mean = self.deviations = 0.0

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.trainer, self.progress = trainer, trainer.progress
        if self.progress.axis == "updates":
            raise ConfigError(f"{name or self.default_name()}: it knows rewards by collected ones, and none are played")
        if getattr(trainer.source, "epochs", 0):
            raise ConfigError(
                f"{name or self.default_name()}: it normalizes rewards of sub-batches, and advantages are estimated "
                "from those of whole batches: env.transforms can scale rewards where they arise"
            )
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("batch_process", self.update_reward_stats, every=self.interval)
        trainer.register_op("process_optim_batch", self.normalize_reward)

    @property
    def variance(self) -> float:
        return self.deviations / (self.weight - 1) if self.weight > 1 else 1.0

    def update_reward_stats(self, batch: TensorDictBase) -> TensorDictBase:
        """Take the rewards of a collected batch into the statistics."""
        reward = played(batch, self.reward_key, self.default_name()).double()
        if reward.numel():
            variance, mean = torch.var_mean(reward, correction=0)
            self._merge(reward.numel(), float(mean), float(variance) * reward.numel())
        return batch

    def _merge(self, weight: float, mean: float, deviations: float) -> None:
        before, away = self.decay * self.weight, mean - self.mean
        self.weight = before + weight
        self.mean += away * weight / self.weight
        self.deviations = self.decay * self.deviations + deviations + away**2 * before * weight / self.weight

    def normalize_reward(self, sub_batch: TensorDictBase) -> TensorDictBase:
        """The sub-batch with normalized rewards, in memory of their own."""
        reward = sub_batch.get(self.reward_key)
        factor = self.scale / math.sqrt(max(self.variance, self.eps))
        normalized = (reward - self.mean * self._rewards_in(sub_batch)) * factor
        return sub_batch.clone(recurse=False).set(self.reward_key, normalized)

    def _rewards_in(self, sub_batch: TensorDictBase) -> Tensor | float:
        """What the discounts of the rewards in each transition add up to; 1 where transitions have one reward."""
        steps = sub_batch.get(NEXT_STEPS, None)
        if steps is None:
            return 1.0
        return steps if self.gamma == 1 else (1 - self.gamma**steps) / (1 - self.gamma)
