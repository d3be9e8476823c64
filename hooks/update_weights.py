"""The hook that sends new weights to the collector."""

from runner.hook import Hook
from runner.spec import Collector
from runner.types import Every


class UpdateWeights(Hook):
    """Calls ``collector.update_policy_weights_()`` after the updates of a batch, each so often."""

    point = "post_steps"

    def __init__(self, collector: Collector, every: Every | None = None) -> None:
        super().__init__(every)
        self.collector = collector

    def __call__(self) -> None:
        self.collector.update_policy_weights_()
