"""The hook that moves the weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import TensorDictBase

from runner.hook import StatelessHook
from runner.types import Every


class OptimizerHook(StatelessHook):
    """Hands the losses of each update to the learner, whose ``step`` has all the maths and the state.

    Made from a ``learner``, it applies all of its optimizations. Made from an ``optimization`` (or a torch optimizer),
    it adds that one to the learner of the trainer it is registered with and applies it alone; several such hooks, in
    the order of their registration, each evaluate their own terms on the weights that those before have left.

    Args:
        terms: the ``loss_*`` that the optimizer minimizes, without ``loss_``; all if not given.
        every: of updates, for example ``{"updates": 2}`` for delayed ones.
    """

    by_module = False

    def __init__(
        self,
        learner: Any = None,
        optimization: Any = None,
        terms: Sequence[str] | None = None,
        every: Every | None = None,
    ) -> None:
        if (learner is None) == (optimization is None):
            raise ValueError("an OptimizerHook applies either a learner or one optimization=")
        if learner is not None and not hasattr(learner, "compute_losses"):
            raise ValueError(f"an optimizer is given as optimization=; {type(learner).__name__} is no learner")
        if learner is not None and (terms or every):
            raise ValueError("a learner's optimizations have terms and update_every of their own: set those")
        if hasattr(optimization, "is_due") and (terms or every):
            raise ValueError("an Optimization has terms and every of its own")
        if every is not None and list(every) != ["updates"]:
            raise ValueError(f"optimizers count updates, for example every={{'updates': 2}}; got {dict(every)}")
        if every is not None and every["updates"] % 1:
            raise ValueError(f"updates are whole: every={{'updates': {every['updates']:g}}}")
        if terms is not None and (isinstance(terms, str) or not terms):
            raise ValueError(f"terms is a list of losses, for example [actor]; got {terms!r}")
        self.learner, self.optimization, self.terms = learner, optimization, terms
        self.every = int(every["updates"]) if every else 1

    def register(self, trainer: Any, name: str | None = None) -> None:
        name = name or self.default_name()
        if trainer.learner is None:
            raise ValueError(f"{name}: this trainer has no losses: make it with a learner or a loss_module")
        if trainer.learner.step in trainer.operations("optimizer"):
            raise ValueError("this trainer was made from loss_module and optimizer: it applies the updates by itself")
        if self.learner is None:
            self.optimization = trainer.learner.add(self.optimization, name, self.terms, self.every)
        trainer.register_module(name, self)
        self._learner = self.learner or trainer.learner
        trainer.register_op("optimizer", self)

    def __call__(self, losses: TensorDictBase, sub_batch: TensorDictBase) -> Mapping[str, Any]:
        return self._learner.step(losses, sub_batch, self.optimization)

    def release(self) -> None:
        if self.optimization is not None:
            self._learner.remove(self.optimization)
