"""The hook that says where a run's time goes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.metrics import Gauge
from runner.spec import ConfigError
from runner.types import Every

BY_POINT = ("_process", "_operate", "_log")
"""The trainer's methods whose first argument is the point of the loop."""


class LogTiming(Hook):
    """Logs ``perf/time_<phase>``: seconds that each phase of the loop took since they were logged last.

    Phases are ``collect``, ``losses``, ``save_and_log`` and the points of the loop; each lasts from the end of the one
    before to its own. The trainer's methods are clocked from the registration of this hook until it is taken out;
    without it, nothing is.
    """

    point = "post_steps_log"

    def __init__(self, every: Every | None = None) -> None:
        super().__init__(every)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = perf_counter()
        self._clocked: list[tuple[Any, str]] = []

    def register(self, trainer: Any, name: str | None = None) -> None:
        if BY_POINT[0] in vars(trainer):
            raise ConfigError(f"{name or self.default_name()}: this trainer is clocked by a LogTiming already")
        super().register(trainer, name)
        for method in BY_POINT:
            self._replace(trainer, method, self._clock_point(getattr(trainer, method)))
        self._replace(trainer, "_optimize", self._clock(trainer._optimize, "optimizer"))
        self._replace(trainer, "_safe_point", self._clock(trainer._safe_point, "save_and_log", after="post_steps_log"))
        self._replace(trainer, "_batches", self._clock_batches(trainer._batches))
        if trainer.learner is not None:
            losses = self._clock(trainer.learner.compute_losses, "losses")
            self._replace(trainer.learner, "compute_losses", losses)

    def _replace(self, owner: Any, method: str, clocked: Callable[..., Any]) -> None:
        setattr(owner, method, clocked)
        self._clocked.append((owner, method))

    def _lap(self, phase: str) -> None:
        now = perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def _clock_point(self, method: Callable[..., Any]) -> Callable[..., Any]:
        seconds = self.seconds

        def clocked(point: str, *arguments: Any) -> Any:
            result = method(point, *arguments)
            now = perf_counter()  # as in _lap, without the time of its call
            seconds[point] += now - self._last
            self._last = now
            return result

        return clocked

    def _clock(self, method: Callable[..., Any], phase: str, after: str | None = None) -> Callable[..., Any]:
        def clocked(*arguments: Any) -> Any:
            if after is not None:
                self._lap(after)
            result = method(*arguments)
            self._lap(phase)
            return result

        return clocked

    def _clock_batches(self, batches: Callable[[], Iterator[TensorDictBase]]) -> Callable[[], Iterator[TensorDictBase]]:
        def clocked() -> Iterator[TensorDictBase]:
            self._last = perf_counter()
            for batch in batches():
                self._lap("collect")
                yield batch

        return clocked

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        seconds = {f"perf/time_{phase}": Gauge(value) for phase, value in self.seconds.items()}
        self.seconds.clear()
        return seconds

    def release(self) -> None:
        for owner, method in self._clocked:
            vars(owner).pop(method, None)
        self._clocked.clear()
