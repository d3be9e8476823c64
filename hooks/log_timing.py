"""The hook that says where a run's time goes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.metrics import Gauge
from runner.types import Every

BY_POINT = ("_process", "_operate", "_log")
"""The trainer's methods whose first argument is the point of the loop."""

PHASES = {"_optimize": "optimizer", "_end_batch": "post_steps_log", "_safe_point": "save_and_log"}


class LogTiming(Hook):
    """Logs ``perf/time_<phase>``: seconds that each phase of the loop took since they were logged last.

    Phases are ``collect``, ``losses``, ``save_and_log`` and the points of the loop. The trainer's methods are clocked
    from the registration of this hook until it is taken out; without it, nothing is.
    """

    point = "post_steps_log"

    def __init__(self, every: Every | None = None) -> None:
        super().__init__(every)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clocked: list[tuple[Any, str]] = []

    def register(self, trainer: Any, name: str | None = None) -> None:
        super().register(trainer, name)
        for method in BY_POINT:
            self._replace(trainer, method, self._clock_point(getattr(trainer, method)))
        for method, phase in PHASES.items():
            self._replace(trainer, method, self._clock(getattr(trainer, method), phase))
        self._replace(trainer, "_batches", self._clock_batches(trainer._batches))
        if trainer.learner is not None:
            losses = self._clock(trainer.learner.compute_losses, "losses")
            self._replace(trainer.learner, "compute_losses", losses)

    def _replace(self, owner: Any, method: str, clocked: Callable[..., Any]) -> None:
        setattr(owner, method, clocked)
        self._clocked.append((owner, method))

    def _clock(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        seconds = self.seconds

        def clocked(*arguments: Any) -> Any:
            started = perf_counter()
            result = method(*arguments)
            seconds[phase] += perf_counter() - started
            return result

        return clocked

    def _clock_point(self, method: Callable[..., Any]) -> Callable[..., Any]:
        seconds = self.seconds

        def clocked(point: str, *arguments: Any) -> Any:
            started = perf_counter()
            result = method(point, *arguments)
            seconds[point] += perf_counter() - started
            return result

        return clocked

    def _clock_batches(self, batches: Callable[[], Iterator[TensorDictBase]]) -> Callable[[], Iterator[TensorDictBase]]:
        def clocked() -> Iterator[TensorDictBase]:
            iterator = batches()
            while True:
                started = perf_counter()
                batch = next(iterator, None)
                self.seconds["collect"] += perf_counter() - started
                if batch is None:
                    return
                yield batch

        return clocked

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        seconds = dict(self.seconds)
        seconds["post_steps_log"] = seconds.get("post_steps_log", 0.0) - seconds.get("save_and_log", 0.0)
        self.seconds.clear()
        return {f"perf/time_{phase}": Gauge(value) for phase, value in seconds.items()}

    def release(self) -> None:
        for owner, method in self._clocked:
            vars(owner).pop(method, None)
        self._clocked.clear()
