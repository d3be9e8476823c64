"""Which values of which rows a server has, told from what it says it has."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from runner.loggers.journal import Row


class Arrived:
    """Knows of each metric what the server has of it, where that is in doubt.

    A value of the server's with the step and the timestamp of a row is that row's. One with the timestamp of no row was
    sent by a process that was killed before it could save; a row that was logged again takes its place at that step.

    Args:
        ask: by the name of a metric, all its values that the server has, with ``step`` and ``timestamp``.
        timestamps: of all rows that are, or will be, sent.
    """

    def __init__(self, ask: Callable[[str], Iterable[Any]], timestamps: Callable[[], set[int]]) -> None:
        self._ask, self._timestamps = ask, timestamps
        self._in_doubt: set[str] = set()
        self._there: dict[str, set[tuple[int, int]]] = {}
        self._left_behind: dict[str, Counter[int]] = {}
        self._replacing: dict[tuple[str, int], set[int]] = {}
        self._own: set[int] | None = None

    def doubt(self, names: Iterable[str]) -> None:
        """The server may have values of these metrics that we do not know of: ask before the next is sent."""
        for name in names:
            self._in_doubt.add(name)
            self._there.pop(name, None)
        self._own = None

    def has(self, name: str, row: Row) -> bool:
        """Whether the server has this row's value of the metric."""
        if name not in self._in_doubt:
            return False
        if name not in self._there:
            self._look(name)
        if (row.step, row.timestamp_ms) in self._there[name]:
            return True
        left_behind = self._left_behind[name][row.step]
        if not left_behind:
            return False
        replacing = self._replacing.setdefault((name, row.step), set())
        if len(replacing) < left_behind:
            replacing.add(row.number)
        return row.number in replacing

    def _look(self, name: str) -> None:
        if self._own is None:
            self._own = self._timestamps()
        values = [(int(value.step), int(value.timestamp)) for value in self._ask(name)]
        self._left_behind[name] = Counter(step for step, timestamp in values if timestamp not in self._own)
        self._there[name] = set(values)
