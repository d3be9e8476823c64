"""The one metric stream of a run: values pile up between two rows, and each row holds their means."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.spec import CLOCKS, Logger, Progress, StateDict

log = logging.getLogger(__name__)


class Gauge(float):
    """A reading, such as a moving average: a row holds the latest one, not the mean of all."""


class Metrics:
    """Collects values by name and hands rows to the loggers: means, or the latest of counts (``int``) and gauges.

    Tensors stay tensors until a row is written, so that logging a loss costs one list append and no synchronization.
    """

    def __init__(self, loggers: Iterable[Logger] = ()) -> None:
        self.loggers = tuple(loggers)
        self.latest: dict[str, Any] = {}
        self.last_row: dict[str, float] = {}
        self._place = (0, 0.0)
        self._failure: str | None = None
        self._told_of: set[int] = set()
        self._pending: defaultdict[str, list[Any]] = defaultdict(list)

    def add(self, values: Mapping[str, Any]) -> None:
        """Add scalars (numbers or 0-d tensors); a tensor must not be written to afterwards."""
        pending = self._pending
        for name, value in values.items():
            if type(value) in (int, Gauge):
                pending[name].clear()
            pending[name].append(value)
        self.latest.update(values)

    def write_row(self, progress: Progress, extra: Mapping[str, float] | None = None) -> dict[str, float]:
        """Average what has piled up, send it to every logger, and begin anew."""
        row: dict[str, float] = {clock: getattr(progress, clock) for clock in CLOCKS}
        row.update({name: _mean(values) for name, values in self._pending.items() if values})
        row.update(extra or {})
        row.update(self._rate(progress))
        self._pending.clear()
        self.last_row.update(row)
        self._tell_all("log_row", row)
        return row

    def log_video(self, name: str, path: Path, progress: Progress, fps: float) -> None:
        """Hand a finished mp4 to every logger that takes one."""
        self._tell_all("log_video", name, path, progress.step, fps)

    def log_histogram(self, name: str, data: Any, progress: Progress, bins: int = 64) -> None:
        """Hand the numbers of a tensor to every logger that shows how they are distributed."""
        self._tell_all("log_histogram", name, data, progress.step, bins)

    def _tell_all(self, method: str, *arguments: Any) -> None:
        """Call every logger that has the method; one that fails is told of once, and stops nothing."""
        for logger in self.loggers:
            try:
                getattr(logger, method, _nothing)(*arguments)
            except Exception as error:  # whatever it is: training does not depend on it
                if id(logger) not in self._told_of:
                    words = "%s fails at %s; training goes on: %s: %s"
                    log.warning(words, type(logger).__name__, method, type(error).__name__, error)
                self._told_of.add(id(logger))

    def _rate(self, progress: Progress) -> dict[str, float]:
        """Env steps (or updates) per second since the row before."""
        before, self._place = self._place, (progress.place, progress.seconds)
        steps, seconds = progress.place - before[0], progress.seconds - before[1]
        return {f"perf/{progress.axis}_per_second": steps / seconds} if steps > 0 and seconds > 0 else {}

    def log_hparams(self, parameters: Mapping[str, Any]) -> None:
        self._tell_all("log_hparams", parameters)

    def resume_without_state(self) -> None:
        """Tell the loggers of a run that goes on before it ever saved: its rows begin anew, its identity does not."""
        for logger in self.loggers:
            logger.load_state_dict({})

    def flush(self) -> None:
        self._tell_all("flush")

    def failure(self) -> str | None:
        """Why the run cannot go on, where a logger has to write what nobody else keeps and cannot, tried once more.

        What has been said once holds: the run stops for it, and must not be taken for done when the disk works again.
        """
        if self._failure is None and self._find_failure():
            self.flush()
            self._failure = self._find_failure()
        return self._failure

    def _find_failure(self) -> str | None:
        return next((text for logger in self.loggers if (text := getattr(logger, "failure", None))), None)

    def close(self, status: str) -> None:
        self._tell_all("close", status)

    def state_dict(self) -> StateDict:
        return {
            "pending": {name: _stack(values) for name, values in self._pending.items()},
            "last_row": dict(self.last_row),
            "place": self._place,
            "loggers": {name: logger.state_dict() for name, logger in self._named_loggers()},
        }

    def load_state_dict(self, state: StateDict) -> None:
        self._pending.clear()
        for name, values in state["pending"].items():
            self._pending[name] = list(values)
        self.last_row = dict(state["last_row"])
        self._place = tuple(state["place"])
        for name, logger in self._named_loggers():
            if name in state["loggers"]:
                logger.load_state_dict(state["loggers"][name])

    def _named_loggers(self) -> list[tuple[str, Logger]]:
        """Each by its class; from the second of a class on with a number."""
        counts: Counter[str] = Counter()
        named = []
        for logger in self.loggers:
            name = type(logger).__name__
            counts[name] += 1
            named.append((name if counts[name] == 1 else f"{name}_{counts[name]}", logger))
        return named


def _nothing(*arguments: Any) -> None:
    """What a logger does about what it does not know."""


def _stack(values: list[Any]) -> Tensor:
    """The values as one tensor ``[K]``: float32 tensors keep their bits, Python numbers become float64."""
    if values and all(isinstance(value, Tensor) for value in values):
        is_spread = len({value.device for value in values}) > 1  # a loaded window is on the CPU
        return torch.stack([value.detach().cpu() if is_spread else value.detach() for value in values])
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _mean(values: list[Any]) -> float:
    return float(_stack(values).double().mean())
