"""The hook that ends a run that has stopped getting better, or is good enough."""

import logging
from math import isfinite
from typing import Any, Literal

from tensordict import TensorDictBase

from runner.hook import Hook, Interval
from runner.spec import StateDict
from runner.types import Every, NonNegativeFloat, PositiveInt

log = logging.getLogger(__name__)


class EarlyStopping(Hook):
    """Stops the run when ``monitor`` reaches ``threshold``, or after ``patience`` values without improvement.

    Args:
        monitor: a metric; values are compared each time a new one is logged.
        mode: ``max`` if higher is better, else ``min``.
        min_delta: an improvement smaller than this does not count.
        patience: values without improvement before the run ends.
        threshold: good enough; ``None`` for no such value.
        every: how often to look whether there is a new value.
        check_finite: a value that is not finite ends the run at once.
        wait_for: values logged before that are not judged, for example ``{"env_steps": 10_000}``.
    """

    point = "post_steps_log"
    remembers = ("best", "waited")

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"] = "max",
        min_delta: NonNegativeFloat = 0.0,
        patience: PositiveInt = 10,
        threshold: float | None = None,
        every: Every | None = None,
        check_finite: bool = True,
        wait_for: Every | None = None,
    ) -> None:
        super().__init__(every)
        self.monitor, self.sign = monitor, 1.0 if mode == "max" else -1.0
        self.min_delta, self.patience = min_delta, patience
        self.threshold, self.check_finite = threshold, check_finite
        self.wait_for = Interval(wait_for) if wait_for else None
        self.best: float | None = None
        self.waited = 0
        self._judged: Any = None
        self._unjudged: float | None = None
        self._is_closed = False

    def __call__(self, batch: TensorDictBase) -> None:
        value = self._new_value()
        if value is not None:
            self._judged, self._unjudged = value, None
            if self.wait_for is None or getattr(self.progress, self.wait_for.unit) >= self.wait_for.n:
                self._judge(self.sign * float(value))

    def _new_value(self) -> Any:
        """The value that was not judged yet, if there is one: a new value is a new object, even if it is equal."""
        value = self.trainer.metrics.latest.get(self.monitor, self._unjudged)
        return None if value is self._judged else value

    def _judge(self, value: float) -> None:
        if self.check_finite and not isfinite(value):
            self.trainer.request_stop(f"{self.monitor} is {self.sign * value:g}, and not finite")
            return
        if self.threshold is not None and value >= self.sign * self.threshold:
            self.trainer.request_stop(f"{self.monitor} reached {self.sign * value:g}")
        best = float("-inf") if self.best is None else self.best
        if value > best + self.min_delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.trainer.request_stop(f"{self.monitor} has not improved on {self.sign * best:g} {self.waited} times")

    def close(self) -> None:
        """At the end of the run: say so if there was nothing to judge, as a mistyped name is not noticed else."""
        latest, self._is_closed, was_closed = self.trainer.metrics.latest, True, self._is_closed
        if self.monitor not in latest and self.best is None and latest and not was_closed:
            names = ", ".join(sorted(latest))
            log.warning("early stopping: %s was never logged in this run; logged were %s", self.monitor, names)

    def state_dict(self) -> StateDict:
        value = self._new_value()
        return {**super().state_dict(), "unjudged": None if value is None else float(value)}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self._unjudged = state["unjudged"]
