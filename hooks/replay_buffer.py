"""The hook that feeds a data source and draws from it."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.spec import DataSource
from runner.types import Every


class ReplayBufferTrainer(Hook):
    """Extends the source with each batch, samples each sub-batch from it, and tells it how surprising that was.

    The source's contents are saved by the trainer, which owns it.

    Args:
        every: how often the batch collected last is stored; each one if not given.
    """

    def __init__(self, source: DataSource, every: Every | None = None) -> None:
        super().__init__(every)
        self.source = source

    def register(self, trainer: Any, name: str | None = None) -> None:
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("batch_process", self.extend, every=self.interval)
        trainer.register_op("process_optim_batch", self.sample)
        trainer.register_op("post_loss", self.update_priority)

    def extend(self, batch: TensorDictBase) -> TensorDictBase:
        self.source.extend(batch)
        return batch

    def sample(self, batch: TensorDictBase) -> TensorDictBase:
        return self.source.sample(batch)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        self.source.update_priority(sub_batch)
