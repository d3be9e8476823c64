"""Metric rows as one wide table, ``metrics.csv``, that a resumed run continues byte for byte."""

import csv
import io
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.spec import CLOCKS, StateDict

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
MAX_PENDING_ROWS = 100_000


class CSVLogger:
    """Writes ``metrics.csv``: the clocks first, then every metric as a column, in order of first appearance.

    Args:
        run: the run's folder, or anything with such a ``path``.
    """

    def __init__(self, run: Any) -> None:
        self.path = Path(getattr(run, "path", run)) / "metrics.csv"
        self._pending: deque[dict[str, float]] = deque(maxlen=MAX_PENDING_ROWS)
        self._columns: list[str] = list(CLOCKS)
        self._rows = 0
        self._bytes = 0
        self._next_write = 0.0
        self._is_failing = False

    def log_hparams(self, parameters: Mapping[str, Any]) -> None:
        """Nothing: a run's folder already holds its configuration."""

    def log_row(self, row: Mapping[str, float]) -> None:
        self._pending.append(dict(row))
        if time.monotonic() >= self._next_write:
            self.flush()

    def flush(self) -> None:
        """Write the rows logged since the last time; where that fails they are kept, and one warning says why."""
        self._next_write = time.monotonic() + WRITE_SECONDS
        if not self._pending:
            return
        try:
            self._write()
            self._is_failing = False
        except (OSError, ValueError, csv.Error) as error:
            if not self._is_failing:
                logger.warning("%s cannot be written (%s); training goes on, rows are kept in memory", self.path, error)
            self._is_failing = True

    def close(self, status: str) -> None:
        self.flush()

    def state_dict(self) -> StateDict:
        """How much has been written, once it is safely on disk."""
        self.flush()
        if self._bytes and not self._is_failing:
            _sync(self.path)
        return {"rows": self._rows, "columns": list(self._columns)}

    def load_state_dict(self, state: StateDict) -> None:
        """Cut the file back to what it was when ``state`` was taken."""
        self._pending.clear()
        self._columns, self._rows, self._bytes = list(CLOCKS), 0, 0
        if not state.get("rows"):
            return
        try:
            kept = self._replace(list(state["columns"]), _first_rows(self.path, state["columns"], state["rows"]))
        except (OSError, ValueError, csv.Error) as error:
            logger.warning("%s cannot be continued (%s); it is begun anew", self.path, error)
            return
        if kept < state["rows"]:
            logger.warning("%s has only %d of the %d rows it should have", self.path, kept, state["rows"])
        self._columns, self._rows = list(state["columns"]), kept

    def _write(self) -> None:
        rows = list(self._pending)
        columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        if columns != self._columns or not self._bytes:
            existing = _first_rows(self.path, self._columns, self._rows) if self._bytes else iter(())
            self._replace(columns, existing)
            self._columns = columns
        self._append(_text([_cell(row.get(name)) for name in columns] for row in rows))
        self._rows += len(rows)
        for _ in rows:
            self._pending.popleft()

    def _replace(self, columns: list[str], rows: Iterator[list[str]]) -> int:
        """Write the file anew with this header and these rows, shorter ones filled up; returns how many there were."""
        temporary = self.path.with_name(f".{self.path.name}.new")
        count = 0
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            file.write(_text([columns]))
            for row in rows:
                file.write(_text([row + [""] * (len(columns) - len(row))]))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._bytes = self.path.stat().st_size
        return count

    def _append(self, text: str) -> None:
        with open(self.path, "r+b") as file:
            file.seek(self._bytes)  # over what a write that failed halfway may have left
            file.write(text.encode())
            file.flush()
            self._bytes = file.tell()


def _first_rows(path: Path, columns: list[str], count: int) -> Iterator[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header[: len(columns)] != columns:
            raise ValueError("its header is another one")
        for _, row in zip(range(count), reader, strict=False):
            yield row[: len(columns)]


def _text(rows: Iterable[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    """The shortest text that reads back as the same bits."""
    if value is None:
        return ""
    try:
        return str(int(value)) if isinstance(value, int | np.integer) else repr(float(value))
    except (TypeError, ValueError):  # not a number after all; better odd in the table than lost with its row
        return str(value)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
