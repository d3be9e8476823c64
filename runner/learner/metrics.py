"""What a Learner counts and measures from one update call to the next, by module and name."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from runner.spec import StateDict

Reduction = Literal["mean", "last", "sum", "lifetime_sum", "min", "max", "series", "percentiles"]
Key = tuple[str, ...]

EMA = 0.01
"""How much the newest value counts of a mean without a window."""
PERCENTS = (0, 50, 75, 90, 95, 99, 100)


class Stat:
    """One value over time.

    ``mean`` is an exponential moving average (``new = (1 - ema) * old + ema * value``), or the mean of the last
    ``window`` values; ``last`` the latest value; ``sum``, ``min``, ``max``, ``series`` and, without a ``window``,
    ``percentiles`` (``{"p50": ...}``) are of all values since the last :meth:`reduce`; ``lifetime_sum`` of all ever.
    """

    def __init__(self, reduce: Reduction, window: int | None = None, ema: float | None = None) -> None:
        if reduce not in get_args(Reduction):
            raise ValueError(f"no way to reduce by {reduce!r}: there are {', '.join(get_args(Reduction))}")
        if reduce != "mean" and (ema is not None or (window is not None and reduce != "percentiles")):
            raise ValueError(f"window and ema go with reduce='mean' (and a window with percentiles), not {reduce!r}")
        if window is not None and window < 1:
            raise ValueError(f"a window of {window} values: it must be >= 1")
        if window is not None and ema is not None:
            raise ValueError("a mean has a window or an ema, not both")
        self.reduction, self.window, self.ema = reduce, window, EMA if ema is None else ema
        self._values: list[Any] = []
        self._total: Any = None
        self.is_new = False
        """Whether a value was added since the last :meth:`reduce`."""

    def add(self, value: Any) -> None:
        """Take a number, or a tensor ``[]``, which is read when somebody asks, and not written to until then."""
        if self.reduction == "last" or len(self._values) == self.window:
            del self._values[0:1]
        self._values.append(value)
        self.is_new = True

    def peek(self) -> Any:
        """The value now: a number, a list for ``series``, ``None`` where there is nothing yet."""
        values = [_number(value) for value in self._values]
        if self.reduction == "series":
            return values
        if self.reduction == "lifetime_sum":
            return (self._total or 0) + sum(values)
        if self.reduction == "mean" and self.window is None:
            return self._averaged(values)
        if not values:
            return None
        if self.reduction == "percentiles":
            return {f"p{percent}": float(np.percentile(values, percent)) for percent in PERCENTS}
        if self.reduction == "mean":
            return sum(values) / len(values)
        return {"last": values[-1], "sum": sum(values), "min": min(values), "max": max(values)}[self.reduction]

    def _averaged(self, values: Sequence[float]) -> float | None:
        average: float | None = self._total
        for value in values:
            average = value if average is None else (1 - self.ema) * average + self.ema * value
        return average

    def reduce(self) -> Any:
        """The value now, and begin anew what is of the time since this was last called."""
        value, self.is_new = self.peek(), False
        if self.reduction == "lifetime_sum" or (self.reduction == "mean" and self.window is None):
            self._total, self._values = value, []
        elif self.reduction != "last" and self.window is None:
            self._values = []
        return value

    def merge(self, others: Sequence["Stat"]) -> None:
        """Take in what learners beside this one have measured; moving averages become their mean."""
        if self.reduction == "mean" and self.window is None:
            averages = [value for value in (one.peek() for one in (self, *others)) if value is not None]
            self._values, self._total = [], sum(averages) / len(averages) if averages else None
            return
        for other in others:
            if self.reduction == "lifetime_sum" and other._total is not None:
                self._total = (self._total or 0) + other._total
            for value in other._values:
                self.add(value)

    def state_dict(self) -> StateDict:
        how = {"reduce": self.reduction, "window": self.window, "ema": self.ema}
        return {**how, "values": [_number(value) for value in self._values], "total": self._total}

    @classmethod
    def of(cls, state: StateDict) -> "Stat":
        is_moving = state["reduce"] == "mean" and state["window"] is None
        made = cls(state["reduce"], state["window"], state["ema"] if is_moving else None)
        made._values, made._total = list(state["values"]), state["total"]
        return made


class LearnerMetrics:
    """Values by keys such as ``("left", "loss/q")``; nothing that a run depends on is kept here alone."""

    def __init__(self) -> None:
        self._stats: dict[Key, Stat] = {}

    def log_value(
        self,
        key: Key | str,
        value: Any,
        reduce: Reduction = "mean",
        window: int | None = None,
        ema: float | None = None,
    ) -> None:
        """Add a value; how it is reduced is said with the first one of its key."""
        key = _as_key(key)
        if key not in self._stats:
            self._stats[key] = Stat(reduce, window, ema)
        self._stats[key].add(value)

    def log_dict(self, values: Mapping[Key | str, Any], reduce: Reduction = "mean", **options: Any) -> None:
        for key, value in values.items():
            self.log_value(key, value, reduce, **options)

    @contextmanager
    def log_time(self, key: Key | str, reduce: Reduction = "mean", **options: Any) -> Iterator[None]:
        """Add the seconds that are spent inside."""
        begun = time.perf_counter()
        yield
        self.log_value(key, time.perf_counter() - begun, reduce, **options)

    def peek(self, key: Key | str, default: Any = None) -> Any:
        """The value of a key now, without any effect; ``default`` where there is none."""
        stat = self._stats.get(_as_key(key))
        value = stat.peek() if stat is not None else None
        return default if value is None else value

    def reduce(self) -> dict[str, Any]:
        """All values now, as a dict by module of dicts by name; sums and the like begin anew.

        What is nothing but its latest value is told once.
        """
        reduced: dict[str, Any] = {}
        for key, stat in self._stats.items():
            is_told = stat.is_new or stat.reduction != "last"
            value = stat.reduce()
            if value is None or not is_told:
                continue
            inside = reduced
            for word in key[:-1]:
                inside = inside.setdefault(word, {})
            inside[key[-1]] = value
        return reduced

    def remove(self, module_id: str) -> None:
        """Forget all about a module."""
        self._stats = {key: stat for key, stat in self._stats.items() if key[0] != module_id}

    def merge(self, others: Sequence["LearnerMetrics"]) -> None:
        """Take in what learners beside this one have measured."""
        for key in dict.fromkeys(key for other in others for key in other._stats):
            theirs = [other._stats[key] for other in others if key in other._stats]
            if key not in self._stats:
                self._stats[key] = Stat.of({**theirs[0].state_dict(), "values": [], "total": None})
            self._stats[key].merge(theirs)

    def state_dict(self) -> StateDict:
        return {"stats": [{"key": list(key), **stat.state_dict()} for key, stat in self._stats.items()]}

    def load_state_dict(self, state: StateDict) -> None:
        self._stats = {tuple(one["key"]): Stat.of(one) for one in state["stats"]}


def _as_key(key: Key | str) -> Key:
    return (key,) if isinstance(key, str) else tuple(key)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
