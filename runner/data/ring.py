"""One field of a ring of rows whose memory is, but for what is being filled, a file that only grows."""

import mmap
import os
from typing import NamedTuple

from runner.data.journal import Journal
from runner.data.region import Region

MAX_CHUNK_BYTES = 2**18


class Layout(NamedTuple):
    """Where rows are in a file: each lap of the ring has a place of its own, so that nothing is ever written twice."""

    row_bytes: int
    rows: int

    @property
    def lap_bytes(self) -> int:
        return _round_up(self.row_bytes * self.rows, mmap.PAGESIZE)

    def offset(self, total: int) -> int:
        """The first byte of the row that ``total`` others came before."""
        lap, row = divmod(total, self.rows)
        return lap * self.lap_bytes + row * self.row_bytes

    def window(self, total: int) -> tuple[int, int]:
        """The bytes from the first to behind the last of the newest rows, when there have been ``total``."""
        return self.offset(max(total - self.rows, 0)), self.offset(total)


class Ring:
    """One field of a ring of rows: memory that shows a file wherever a chunk has been filled.

    The chunk that is being filled is ordinary memory, and goes to the file as a whole.
    """

    def __init__(self, journal: Journal, layout: Layout) -> None:
        self.journal, self.layout = journal, layout
        self._lap_bytes, self._row_bytes = layout.lap_bytes, layout.row_bytes
        self._chunk = min(MAX_CHUNK_BYTES, _round_up(self._lap_bytes // 16, mmap.PAGESIZE))
        self.region = Region(self._lap_bytes)
        self._open_from = self._open_to = 0

    @property
    def calm_rows(self) -> int:
        """The rows of this lap until which ``open`` and ``close`` have nothing to do; negative for none at all."""
        if self._open_from == self._open_to:
            return -1
        return (min(self._open_from + self._chunk, self._row_bytes * self.layout.rows) - 1) // self._row_bytes

    def open(self, stop: int) -> None:
        """Make the memory of this lap's rows before ``stop`` writable."""
        end = min(_round_up(stop * self._row_bytes, self._chunk), self._lap_bytes)
        if end > self._open_to:
            self.region.put_in_memory(self._open_to, end)
            self._open_to = end

    def close(self, lap: int, stop: int) -> None:
        """Hand the chunks over to the file that are full once this lap's rows before ``stop`` have been written."""
        is_over = stop == self.layout.rows
        end = self._lap_bytes if is_over else stop * self._row_bytes // self._chunk * self._chunk
        if end > self._open_from:
            place = lap * self._lap_bytes + self._open_from
            self.journal.write(self.region.view[self._open_from : end], place)
            self.region.put_in_file(self._open_from, end, self.journal.descriptor, place, is_cached=True)
            self._open_from = end
        if is_over:
            self._open_from = self._open_to = 0

    def tail(self, total: int) -> tuple[bytes, int]:
        """A copy of the rows that are in no file yet, and where they belong."""
        lap, row = divmod(total, self.layout.rows)
        raw = bytes(self.region.view[self._open_from : row * self._row_bytes])
        return raw, lap * self._lap_bytes + self._open_from

    def restore(self, total: int) -> None:
        """Show the newest of the ``total`` rows that the file holds, and forget what was written after them."""
        self.journal.cut(self.layout.offset(total))
        lap, row = divmod(total, self.layout.rows)
        end = row * self._row_bytes
        begin = end // self._chunk * self._chunk
        file, place = self.journal.descriptor, lap * self._lap_bytes
        self.region.put_in_file(0, begin, file, place)
        if lap:
            self.region.put_in_file(begin, self._lap_bytes, file, place - self._lap_bytes + begin)
        self._open_from = self._open_to = begin
        if end > begin:
            self.open(row)
            self.region.view[begin:end] = os.pread(file, end - begin, place + begin)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
