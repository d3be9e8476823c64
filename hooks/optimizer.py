"""The hook that moves the weights."""

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase

from runner.hook import StatelessHook


class OptimizerHook(StatelessHook):
    """Hands the losses of each update to the learner, whose ``step`` has all the maths."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def register(self, trainer: Any, name: str | None = None) -> None:
        if self.learner.step in trainer.operations("optimizer"):
            raise ValueError("this trainer was made from loss_module and optimizer: it applies the updates by itself")
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("optimizer", self)

    def __call__(self, losses: TensorDictBase, sub_batch: TensorDictBase) -> Mapping[str, Any]:
        return self.learner.step(losses, sub_batch)
