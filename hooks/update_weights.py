"""The hook that sends new weights to the collector."""

from typing import Any

from runner.hook import Interval, TrainerHookBase
from runner.spec import Collector, StateDict
from runner.types import Every


class UpdateWeights(TrainerHookBase):
    """Calls ``collector.update_policy_weights_()`` after the updates of a batch, each so often."""

    def __init__(self, collector: Collector, every: Every) -> None:
        self.collector, self.interval = collector, Interval(every)

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("post_steps", self)

    def __call__(self) -> None:
        if self.interval.fires(self.progress):
            self.collector.update_policy_weights_()

    def state_dict(self) -> StateDict:
        return self.interval.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.interval.load_state_dict(state)
