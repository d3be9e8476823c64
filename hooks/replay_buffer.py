"""The hook that feeds a data source and draws from it."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import StatelessHook
from runner.spec import DataSource


class ReplayBufferTrainer(StatelessHook):
    """Extends the source with each batch, samples each sub-batch from it, and tells it how surprising that was.

    The source's contents are saved by the trainer, which owns it.
    """

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def register(self, trainer: Any, name: str | None = None) -> None:
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("batch_process", self.extend)
        trainer.register_op("process_optim_batch", self.sample)
        trainer.register_op("post_loss", self.update_priority)

    def extend(self, batch: TensorDictBase) -> TensorDictBase:
        self.source.extend(batch)
        return batch

    def sample(self, batch: TensorDictBase) -> TensorDictBase:
        return self.source.sample(batch)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        self.source.update_priority(sub_batch)
