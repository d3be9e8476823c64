"""Numbers whose sums are kept in a tree, so that some of them can be drawn in proportion to their size."""

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

WIDTH = 32
"""Children of a node. A call costs as much as 1,000 additions, so that few levels are worth wide nodes."""
LARGEST_TOP = 1024
BELOW = 1 - 2**-52
"""Times a number: the next smaller one, or the one after that."""


class SumTree:
    """``size`` numbers that are not negative, zero at first; a batch of them is changed or drawn by one call.

    A sum is always made anew from what it sums, and in the same order: it depends on the numbers alone, to the bit, and
    not on how they came to be. What has changed is summed up when it is asked for, all at once.

    Attributes:
        levels: the numbers, padded with zeros; the sums of each 32 of those; and so on, up to at most 1,024 sums.
    """

    def __init__(self, size: int) -> None:
        depth = 0
        while (top := -(-size // WIDTH**depth)) > LARGEST_TOP:
            depth += 1
        self.levels = [np.zeros(top * WIDTH ** (depth - level)) for level in range(depth + 1)]
        self._nodes = [level.reshape(-1, WIDTH) for level in self.levels[:-1]]
        self._changed: list[Integers] = []
        self._range = (0, 0)
        self._top, self._work = _Top(self.levels[-1]), _Work(0)

    @property
    def numbers(self) -> Floats:
        return self.levels[0]

    @property
    def total(self) -> float:
        self._sum_up()
        return float(_cumulated(self.levels[-1][None])[0, -1])

    def set(self, indices: Integers, numbers: Floats) -> None:
        """Change numbers; where an index comes twice, its last number counts."""
        self.levels[0][indices] = numbers
        self._changed.append(indices)

    def set_range(self, start: int, stop: int, number: float) -> None:
        """Give all from ``start`` to before ``stop`` the same number."""
        self.levels[0][start:stop] = number
        first, end = self._range
        if start != end:
            self._close_range()
            first = start
        self._range = first, stop

    def _close_range(self) -> None:
        start, stop = self._range
        if start < stop:
            self._changed.append(np.arange(start // WIDTH * WIDTH, stop, WIDTH))
        self._range = stop, stop

    def _sum_up(self) -> None:
        """Renew every sum that something changed is part of."""
        self._close_range()
        if not self._changed:
            return
        indices = np.concatenate(self._changed)
        self._changed.clear()
        for nodes, sums in zip(self._nodes, self.levels[1:], strict=True):
            indices = indices // WIDTH
            # The last of all partial sums: numpy's and torch's own sums may be of another order for other numbers.
            sums[indices] = _cumulated(nodes.take(indices, axis=0))[:, -1]

    def find(self, points: Floats) -> Integers:
        """Where each point ``[B]`` of ``[0, 1)`` falls if the numbers are laid end to end on it.

        A number is found in proportion to its size, and never if it is zero; at least one must not be.
        """
        self._sum_up()
        if len(self._work.left) != len(points):
            self._work = _Work(len(points))
        work, top = self._work, self._top
        torch.cumsum(top.numbers, 0, out=top.sums)
        total = top.before[-1]
        left = np.minimum(np.multiply(points, total, out=work.left), total * BELOW, out=work.left)
        found = top.before[1:].searchsorted(left, side="right")
        left -= top.before.take(found)
        for nodes in self._nodes[::-1]:
            nodes.take(found, axis=0, out=work.children, mode="clip")
            torch.cumsum(work.given, 1, out=work.sums)
            # What is left may pass the last child by a hair: the sums before it were rounded, too.
            np.minimum(left, work.before[:, -1] * BELOW, out=left)
            place = work.search()
            found *= WIDTH
            found += place
            if nodes is not self._nodes[0]:
                left -= work.before.take(place + work.rows)
        return found


class _Top:
    """The highest level, and what comes before each of its numbers."""

    def __init__(self, numbers: Floats) -> None:
        self.numbers, self.before = torch.from_numpy(numbers), np.zeros(len(numbers) + 1)
        self.sums = torch.from_numpy(self.before)[1:]


class _Work:
    """Memory for a batch of searches: in the children of one node each, what comes before them, what is left."""

    def __init__(self, size: int) -> None:
        self.children, self.left = np.zeros((size, WIDTH)), np.zeros(size)
        self.before = np.zeros((size, WIDTH + 1))
        self.rows = np.arange(size) * (WIDTH + 1)
        self.given, self._all = torch.from_numpy(self.children), torch.from_numpy(self.before)
        self._left = torch.from_numpy(self.left)[:, None]
        self.sums = self._all[:, 1:]

    def search(self) -> Integers:
        """In each row the child in which ``left`` ends."""
        return torch.searchsorted(self._all, self._left, right=True).numpy()[:, 0] - 1


def _cumulated(rows: Floats) -> Floats:
    """Partial sums along each row; by torch, which takes a quarter of numpy's time."""
    return torch.from_numpy(rows).cumsum(1).numpy()
