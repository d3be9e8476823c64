"""The hook that logs how much the policy explores."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.metrics import Gauge
from runner.types import Every


class LogExploration(Hook):
    """Logs what the exploration has to say of itself, for example ``train/epsilon``."""

    point = "pre_steps_log"

    def __init__(self, policy: Any, every: Every | None = None) -> None:
        super().__init__(every)
        self.policy = policy

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        readings = self.policy.metrics(self.progress.env_steps)
        return {**{name: Gauge(value) for name, value in readings.items()}, "log_pbar": True}
