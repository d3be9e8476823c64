"""The hook that ends the updates on a batch once the policy has moved far enough."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import StatelessHook
from runner.spec import KL, ConfigError
from runner.types import PositiveFloat


class KLStop(StatelessHook):
    """Ends the updates on a batch with the first whose sub-batch shows a mean divergence above ``limit``.

    That is measured, by the ``kl`` that the loss gives of each sample, before the update's own step.
    """

    def __init__(self, limit: PositiveFloat) -> None:
        self.limit = limit

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.trainer = trainer
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("post_loss", self)

    def __call__(self, sub_batch: TensorDictBase) -> None:
        kl = sub_batch.get(KL, None)
        if kl is None:
            raise ConfigError(f"kl_stop: this loss gives no {KL} of its samples")
        if kl.mean().item() > self.limit:
            self.trainer.optim_stopped = True
