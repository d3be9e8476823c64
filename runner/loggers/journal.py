"""Metric rows on disk until a server has them: lines that are added at the end, and read by another process."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runner.loggers.files import make_durable, open_regular, write_at

logger = logging.getLogger(__name__)

JOURNAL = "mlflow-unsent.jsonl"
MAX_PENDING_LINES = 100_000
MAX_LINE_BYTES = 2**20
MAX_NUMBER = 2**62
_CHUNK_BYTES = 2**20


class Row(NamedTuple):
    """One row of metrics: the how-manieth of its run, where it lies on the step axis, and when it was logged.

    No two rows of a run have the same ``timestamp_ms``: a server's value tells by it which row it is of.
    """

    number: int
    step: int
    timestamp_ms: int
    values: dict[str, float]


Line = Row | dict[str, Any]
"""A row, or a mapping that says something about the run."""


class Journal:
    """Adds lines to the file at ``path``; what cannot be written is kept for the next time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._bytes = 0
        self._pending: list[bytes] = []

    def add(self, line: Line) -> None:
        """Remember a line for the next :meth:`write`; ``OverflowError`` where too many wait for a full disk."""
        if len(self._pending) >= MAX_PENDING_LINES:  # the first ones stay: half of them may be in the file already
            raise OverflowError(f"{MAX_PENDING_LINES} rows wait already")
        self._pending.append(json.dumps(line).encode() + b"\n")
        self.rows += isinstance(line, Row)

    def write(self) -> None:
        """Add what waits to the file; ``OSError`` where that fails, and then all of it still waits."""
        if self._pending:
            self._bytes = write_at(self.path, b"".join(self._pending), self._bytes)
            self._pending.clear()

    def push(self) -> None:
        """Push what was written to the disk, from any thread; where that fails a warning is all.

        These rows are a copy for a server: ``metrics.csv`` is the record, for which a checkpoint waits.
        """
        try:
            make_durable(self.path)
        except FileNotFoundError:  # nothing was written yet, or all of it has been sent
            return
        except OSError as error:
            logger.warning("%s cannot be pushed to the disk (%s); training goes on", self.path, error)

    def clear(self) -> None:
        """Remove the file and forget what waits."""
        self._pending.clear()
        self.rows = self._bytes = 0
        self.path.unlink(missing_ok=True)

    def cut(self, below: int) -> None:
        """Go on with the file as it was before row number ``below``; a resumed run logs the others again."""
        self._pending.clear()
        self.rows = self._bytes = 0
        for line, end in read_lines(self.path):
            if isinstance(line, Row):
                if line.number >= below:
                    break
                self.rows += 1
            self._bytes = end
        if self.path.is_file():
            descriptor = open_regular(self.path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, self._bytes)
            finally:
                os.close(descriptor)


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[Line, int]]:
    """Each whole line from ``offset`` on, and where it ends; damaged ones are left out, and one warning says so."""
    has_warned = False
    for text, end in _whole_lines(path, offset):
        try:
            yield line_of(json.loads(text)), end
        except (ValueError, TypeError, OverflowError, RecursionError):
            if not has_warned:
                logger.warning("%s has a line that is not a row of metrics; it is left out", path)
            has_warned = True


def _whole_lines(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """The bytes up to each line feed; of a longer line than any of ours only an empty text."""
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as file:
        file.seek(offset)
        rest, is_too_long = b"", False
        while chunk := file.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                offset += len(line) + 1
                yield (b"" if is_too_long or len(line) > MAX_LINE_BYTES else line), offset
                is_too_long = False
            if len(rest) > MAX_LINE_BYTES:
                offset, rest, is_too_long = offset + len(rest), b"", True


def line_of(parts: Any) -> Line:
    """The line that ``parts``, read from a file, are; an error where they are none."""
    if isinstance(parts, dict):
        return parts
    number, step, timestamp_ms, values = parts
    if not all(type(count) is int and 0 <= count < MAX_NUMBER for count in (number, step, timestamp_ms)):
        raise ValueError("not a row")
    if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
        raise ValueError("not values of a row")
    return Row(number, step, timestamp_ms, {key: float(value) for key, value in values.items()})
