"""The hook that feeds a data source and draws from it."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import StatelessHook
from runner.spec import ConfigError, DataSource


class ReplayBufferTrainer(StatelessHook):
    """Extends the source with each batch, samples each sub-batch from it, and tells it how surprising that was.

    The source's contents are saved by the trainer, which owns it. Every batch goes in: what lies side by side there
    counts as consecutive steps. What works on sampled sub-batches is registered after this hook.
    """

    def __init__(self, source: DataSource) -> None:
        self.source = source

    def register(self, trainer: Any, name: str | None = None) -> None:
        name = name or self.default_name()
        earlier = trainer.operations("process_optim_batch")
        if earlier:
            other = _name_of(earlier[0])
            raise ConfigError(
                f"{name}: it samples what updates see, so what {other} makes of it before would be thrown away: "
                f"name {other} after it, as in learning=[off_policy,{other}]"
            )
        self._learner = trainer.learner
        trainer.register_module(name, self)
        trainer.register_op("batch_process", self.extend)
        trainer.register_op("process_optim_batch", self.sample)
        trainer.register_op("post_loss", self.update_priority)

    def extend(self, batch: TensorDictBase) -> TensorDictBase:
        self.source.extend(batch)
        return batch

    def sample(self, batch: TensorDictBase) -> TensorDictBase:
        return self.source.sample(batch)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        if self._learner is None or self._learner.is_due():  # else no loss has looked at the sub-batch
            self.source.update_priority(sub_batch)


def _name_of(operation: Any) -> str:
    """The name by which a hook, or a function, is known where it is configured."""
    owner = getattr(operation, "__self__", operation)
    return owner.default_name() if hasattr(owner, "default_name") else getattr(owner, "__name__", type(owner).__name__)
