"""Histograms as a long table, one line for each bin, that a resumed run continues byte for byte."""

import csv
import io
import os
from pathlib import Path

from runner.loggers.base import Histogram
from runner.loggers.files import open_regular, write_at
from runner.spec import StateDict

HEADER = ("frames", "name", "low", "high", "count")
MAX_UNWRITTEN_BYTES = 2**24


class HistogramTable:
    """Adds to ``histograms.csv``: ``OSError`` where that fails, and then what is unwritten goes with the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = 0
        self._unwritten = b""

    def add(self, name: str, histogram: Histogram, step: int) -> None:
        bins = zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([HEADER] if not (self._bytes or self._unwritten) else [])
        writer.writerows([step, name, repr(low), repr(high), count] for low, high, count in bins)
        if len(self._unwritten) < MAX_UNWRITTEN_BYTES:
            self._unwritten += text.getvalue().encode()
        self.write()

    def write(self) -> None:
        if not self._unwritten:
            return
        if not self._bytes:
            self.path.unlink(missing_ok=True)  # of another run in this folder
        self._bytes = write_at(self.path, self._unwritten, self._bytes)
        self._unwritten = b""

    def state_dict(self) -> StateDict:
        return {"bytes": self._bytes, "unwritten": self._unwritten.decode()}

    def load_state_dict(self, state: StateDict) -> None:
        """Cut the file back to what it was; ``OSError`` where it is shorter, and then it is begun anew."""
        self._bytes, self._unwritten = 0, str(state.get("unwritten", "")).encode()
        wanted = int(state.get("bytes", 0))
        if not wanted:
            return
        descriptor = open_regular(self.path, os.O_WRONLY)
        try:
            found = os.fstat(descriptor)
            if found.st_nlink > 1 or found.st_size < wanted:
                raise OSError(f"{self.path} is not as it was; it is begun anew")
            os.ftruncate(descriptor, wanted)
        finally:
            os.close(descriptor)
        self._bytes = wanted
