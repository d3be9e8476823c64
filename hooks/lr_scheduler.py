"""The hook that steps a learning-rate scheduler of torch."""

from typing import Any

from runner.hook import Hook
from runner.schedules import Constant
from runner.spec import StateDict
from runner.types import Every, Factory


class LRSchedulerHook(Hook):
    """Steps ``lr_scheduler`` after updates, each so often; never where there was no update since the last time.

    For trainers made by hand, and schedulers that only torch has. A schedule of a learner is applied by its
    optimization: an optimizer that has one is refused here.

    Args:
        lr_scheduler: one of ``torch.optim.lr_scheduler``, or what makes it from ``optimizer=``, the learner's.
    """

    def __init__(self, lr_scheduler: Factory, every: Every | None = None) -> None:
        super().__init__(every or {"updates": 1})
        self.lr_scheduler: Any = lr_scheduler
        self.updates = 0

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        optimizations = trainer.learner.optimizations() if trainer.learner else []
        if not hasattr(self.lr_scheduler, "step"):
            if len(optimizations) != 1:
                raise ValueError(f"lr_scheduler: made for one optimizer, and the learner has {len(optimizations)}")
            self.lr_scheduler = self.lr_scheduler(optimizer=optimizations[0].optimizer)
        for one in optimizations:
            if one.optimizer is self.lr_scheduler.optimizer:
                self._take_over(one)
        trainer.register_module(name or self.default_name(), self)
        assert self.interval is not None
        point = "post_optim" if self.interval.unit == "updates" else "post_steps"
        trainer.register_op(point, self, every=self.interval)

    @staticmethod
    def _take_over(optimization: Any) -> None:
        if not isinstance(optimization.schedule, Constant | None):
            kind = type(optimization.schedule).__name__
            raise ValueError(f"optimization {optimization.name!r} has a {kind} schedule already: scheduler=constant")
        optimization.schedule = None  # a constant one would set the rate back in each update

    def __call__(self) -> None:
        if self.progress.updates > self.updates:
            self.updates = self.progress.updates
            self.lr_scheduler.step()

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "updates": self.updates, "lr_scheduler": self.lr_scheduler.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self.updates = state["updates"]
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        groups = self.lr_scheduler.optimizer.param_groups
        for group, lr in zip(groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
