"""Metric rows as one wide table, ``metrics.csv``, that a resumed run continues byte for byte."""

import csv
import errno
import hashlib
import io
import itertools
import json
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runner.loggers.base import Histogram, Logger
from runner.loggers.files import make_durable, open_regular, write_at
from runner.loggers.histograms import HistogramTable
from runner.spec import CLOCKS, Deferred, StateDict

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
ENOUGH_VALUES = 100_000
"""Where so many are unwritten the run has to end, whatever the reason: a checkpoint, which holds them, takes no end."""
MAX_VALUES = 200_000
DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors that do not go away by themselves, and that nobody but the user can mend."""


class CSVLogger(Logger):
    """Writes ``metrics.csv``: the clocks first, then every metric as a column, in order of first appearance.

    It is the record that needs no server: where the disk takes no more of it, ``failure`` says why the run has to end.
    Histograms go to ``histograms.csv``, videos to ``videos/``, parameters to ``hparams.json`` where there is no run.
    """

    def __init__(self, exp_name: str | None = None, log_dir: str | Path | None = None, run: Any = None) -> None:
        super().__init__(exp_name, log_dir, run)
        self.path = self.folder / "metrics.csv"
        self._histograms = HistogramTable(self.folder / "histograms.csv")
        self.failure: str | None = None
        self._pending: deque[dict[str, float]] = deque()
        self._columns: list[str] = list(CLOCKS)
        self._rows = 0
        self._bytes = 0
        self._digest = hashlib.sha256()
        self._next_write = 0.0
        self._is_failing = False

    def show_hparams(self, parameters: Mapping[str, Any]) -> None:
        """Nothing in a run: its folder already holds its configuration."""
        if self.is_alone:
            text = json.dumps(parameters, indent=1, default=str)
            (self.folder / "hparams.json").write_text(text, encoding="utf-8")

    def show_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        try:
            self._histograms.add(name, histogram, step)
        except OSError as error:
            self.warn_once("%s cannot be written (%s)", self._histograms.path, error.strerror or error)

    def take_row(self, row: Mapping[str, float]) -> None:
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
            self.failure, self._is_failing = None, False
        except (OSError, ValueError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            if not self._is_failing:
                logger.warning("%s cannot be written (%s); its rows are kept in memory", self.path, reason)
            self._is_failing = True
            if self._bound_pending() or getattr(error, "errno", None) in DISK_FAILS:
                self.failure = f"{self.path} cannot be written: {reason}"

    def _bound_pending(self) -> bool:
        """Whether enough is unwritten for the run to end; where it does not, the oldest rows are given up in time."""
        values = sum(map(len, self._pending))
        is_enough, given_up = values >= ENOUGH_VALUES, 0
        while values > MAX_VALUES:
            values -= len(self._pending.popleft())
            given_up += 1
        if given_up:
            logger.warning("%s: the oldest %s of the rows kept in memory are given up", self.path, given_up)
        return is_enough

    def close(self, status: str = "done") -> None:
        """Write what is left and push it to the disk: a run that is said to be done makes no row again."""
        self.flush()
        try:
            make_durable(self.path)
        except OSError as error:
            self._warn_not_pushed(error)

    def state_dict(self) -> StateDict:
        """How much has been written, which a checkpoint's writer pushes to the disk first, and what could not be."""
        self.flush()
        committed = {"rows": self._rows, "bytes": self._bytes, "sha256": self._digest.hexdigest()}
        kept: StateDict = {"unwritten": list(self._pending)} if self._pending else {}
        histograms = self._histograms.state_dict()
        kept |= {"histograms": histograms} if any(histograms.values()) else {}
        return {**committed, "columns": list(self._columns), "push": Deferred(self._push), **kept}

    def _push(self) -> None:
        """Push the rows to the disk; where that fails no checkpoint may be made that takes them to be there.

        A file that somebody removed or replaced is told of when rows are written, or read: it holds up no checkpoint.
        """
        try:
            make_durable(self.path)
        except OSError as error:
            if error.errno in DISK_FAILS:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            self._warn_not_pushed(error)

    def _warn_not_pushed(self, error: OSError) -> None:
        if self._bytes:
            logger.warning("%s cannot be pushed to the disk (%s); training goes on", self.path, error)

    def load_state_dict(self, state: StateDict) -> None:
        """Cut the file back to what it was when ``state`` was taken.

        A file that does not begin with those very rows stays beside it under another name: it is all there is of them.
        """
        self._pending.clear()
        self._pending.extend(map(dict, state.get("unwritten", ())))
        self._load_histograms(state.get("histograms", {}))
        self._columns, self._rows, self._bytes = list(CLOCKS), 0, 0
        if not state.get("rows"):
            return
        columns = list(state["columns"])
        try:
            if not self._cut_back(state):
                rows, digest = self._write_anew(columns, _first_rows(self.path, columns, state["rows"]))
                self._put_aside(_difference(state, rows, digest.hexdigest()))
                self._take_over(rows, digest)
        except (OSError, ValueError, csv.Error) as error:
            self._put_aside(f"cannot be continued ({getattr(error, 'strerror', None) or error}); it is begun anew")
        else:
            self._columns = columns

    def _load_histograms(self, state: StateDict) -> None:
        try:
            self._histograms.load_state_dict(state)
        except OSError as error:
            logger.warning("%s", error)

    def _cut_back(self, state: StateDict) -> bool:
        """Cut the file where it is, if it begins with just the bytes that it had."""
        if self.path.is_symlink():
            return False
        with open(open_regular(self.path, os.O_RDWR), "r+b") as file:
            if os.fstat(file.fileno()).st_nlink > 1:  # cutting it would cut a file elsewhere
                return False
            digest, left = hashlib.sha256(), int(state.get("bytes", 0))
            while left and (part := file.read(min(left, 2**20))):
                digest.update(part)
                left -= len(part)
            if left or digest.hexdigest() != state.get("sha256"):
                return False
            self._bytes = file.tell()
            file.truncate()
        self._rows, self._digest = state["rows"], digest
        return True

    def _write(self) -> None:
        rows = list(self._pending)
        columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        if columns != self._columns or not self._bytes:
            existing = _first_rows(self.path, self._columns, self._rows) if self._bytes else iter(())
            self._take_over(*self._write_anew(columns, existing))
            self._columns = columns
        self._append(_text([_cell(row.get(name)) for name in columns] for row in rows).encode())
        self._rows += len(rows)
        for _ in rows:
            self._pending.popleft()

    def _write_anew(self, columns: list[str], rows: Iterator[list[str]]) -> tuple[int, Any]:
        """Write a file beside ours with this header and these rows, shorter ones filled up: how many, and a digest."""
        number, digest = 0, hashlib.sha256()
        self._new.unlink(missing_ok=True)
        try:
            with open(self._new, "xb") as file:
                for number, row in enumerate(itertools.chain([columns], rows)):  # noqa: B007
                    line = _text([row + [""] * (len(columns) - len(row))]).encode()
                    digest.update(line)
                    file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self._new.unlink(missing_ok=True)  # half of a file may be what fills the disk
            raise
        return number, digest

    def _take_over(self, rows: int, digest: Any) -> None:
        """Let what was written beside our file take its place."""
        self._bytes = self._new.stat().st_size
        os.replace(self._new, self.path)
        self._rows, self._digest = rows, digest

    @property
    def _new(self) -> Path:
        return self.path.with_name(f".{self.path.name}.new")

    def _put_aside(self, reason: str) -> None:
        """Give our file another name, if there is a reason to, and say so."""
        if not reason:
            return
        if not os.path.lexists(self.path):
            logger.warning("%s %s", self.path, reason)
            return
        names = (self.path.with_name(f"metrics-damaged{number}.csv") for number in ("", *range(2, 1000)))
        try:
            aside = next(name for name in names if not os.path.lexists(name))
            os.rename(self.path, aside)
            logger.warning("%s %s; as it was found it is now %s", self.path, reason, aside.name)
        except (OSError, StopIteration) as error:
            logger.warning("%s %s; it could not be put aside (%s)", self.path, reason, error)

    def _append(self, text: bytes) -> None:
        self._bytes = write_at(self.path, text, self._bytes)
        self._digest.update(text)


def _difference(state: StateDict, kept: int, digest: str) -> str:
    """What is wrong with a file of which that many rows, of that digest, were found."""
    if kept < state["rows"]:
        return f"has only {kept} of the {state['rows']} rows it should have"
    is_same = state.get("sha256", digest) == digest
    return "" if is_same else f"has other values in its first {kept} rows than were written"


def _first_rows(path: Path, columns: list[str], count: int) -> Iterator[list[str]]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a file")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header[: len(columns)] != columns:
            raise ValueError("its header is another one")
        last: list[str] | None = None
        for _, row in zip(range(count), reader, strict=False):
            if last is not None:
                yield last[: len(columns)]
            last = row
        # Half of a row is none: the number that it ends with may be another one.
        is_whole = next(reader, None) is not None or (_ends_with_newline(path) and len(last or ()) >= len(header))
        if last is not None and is_whole:
            yield last[: len(columns)]


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


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
