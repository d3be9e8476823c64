"""Metric rows on their way to a server that may be slow, away or gone: none is lost, none is sent in vain."""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from runner.spec import CLOCKS

logger = logging.getLogger(__name__)

MAX_PENDING_ROWS = 10_000
_MAX_LINE_BYTES = 2**20


class Row(NamedTuple):
    """One row of metrics: the how-manieth of its run, where it lies on the step axis, and when it was logged."""

    number: int
    step: int
    timestamp_ms: int
    values: dict[str, float]


class Spool:
    """The file of a run's folder that keeps rows a server did not get, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Collection[Row]) -> None:
        if rows:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())

    def read(self) -> Iterator[Row]:
        if not self.path.is_file():
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE_BYTES):
                try:
                    yield row_of(json.loads(line))
                except (ValueError, TypeError, RecursionError):
                    logger.warning("%s has a line that is not a row of metrics; it is left out", self.path)

    def keep(self, below: int) -> None:
        """Keep only rows numbered less than ``below``; a resumed run makes the others again."""
        kept = [row for row in self.read() if row.number < below]
        self.clear()
        self.append(kept)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


def row_of(parts: Any) -> Row:
    """The row that ``parts``, read from a file, describes; ``ValueError`` or ``TypeError`` where it is none."""
    number, step, timestamp_ms, values = parts
    return Row(int(number), int(step), int(timestamp_ms), {str(key): float(value) for key, value in values.items()})


class Outbox:
    """Rows waiting to be sent, filled by the training thread and emptied by the sending one."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.count = 0
        self._pending: deque[Row] = deque()
        self._lock = threading.Lock()
        self._is_open = True

    def add(self, row: Mapping[str, float]) -> None:
        values = {key: float(value) for key, value in row.items() if key not in CLOCKS}
        step = int(row.get("frames", row.get("env_steps", 0)))
        with self._lock:
            self._pending.append(Row(self.count, step, int(time.time() * 1000), values))
            self.count += 1

    def peek(self, count: int) -> list[Row]:
        with self._lock:
            return list(islice(self._pending, count)) if self._is_open else []

    def acknowledge(self, rows: Collection[Row]) -> None:
        """The server has these rows, which are the first ones waiting."""
        with self._lock:
            for _ in range(min(len(rows), len(self._pending))):
                self._pending.popleft()

    def acknowledge_spool(self) -> None:
        with self._lock:
            if self._is_open:
                self.spool.clear()

    def spill(self) -> None:
        """Move the older half to the spool where too many wait, or drop it where even that fails."""
        with self._lock:
            if len(self._pending) <= MAX_PENDING_ROWS or not self._is_open:
                return
            rows = [self._pending.popleft() for _ in range(len(self._pending) - MAX_PENDING_ROWS // 2)]
            try:
                self.spool.append(rows)
            except OSError as error:
                logger.warning("%d rows of metrics for MLflow are lost: %s", len(rows), error)

    def forget_spool(self) -> None:
        try:
            self.spool.clear()
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self.spool.path, error)

    def surrender(self) -> int:
        """Give up sending: spool what still waits, and return how many rows the spool then holds."""
        with self._lock:
            self._is_open = False
            self.spool.append(self._pending)
            self._pending.clear()
            return sum(1 for _ in self.spool.read())

    def state_dict(self) -> dict[str, Any]:
        with self._lock:
            return {"rows": self.count, "unsent": [tuple(row) for row in self._pending]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self.count = int(state.get("rows", 0))
            self.spool.keep(below=self.count)
            spooled = {row.number for row in self.spool.read()}
            rows = [row_of(parts) for parts in state.get("unsent", ())]
            self._pending = deque(row for row in rows if row.number not in spooled)
