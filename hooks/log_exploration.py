"""The hook that logs how much the policy explores."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Interval, TrainerHookBase
from runner.metrics import Gauge
from runner.spec import StateDict
from runner.types import Every


class LogExploration(TrainerHookBase):
    """Logs what the exploration has to say of itself, for example ``train/epsilon``."""

    def __init__(self, policy: Any, every: Every) -> None:
        self.policy, self.interval = policy, Interval(every)

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("pre_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any] | None:
        if not self.interval.fires(self.progress):
            return None
        readings = self.policy.metrics(self.progress.env_steps)
        return {**{name: Gauge(value) for name, value in readings.items()}, "log_pbar": True}

    def state_dict(self) -> StateDict:
        return self.interval.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self.interval.load_state_dict(state)
