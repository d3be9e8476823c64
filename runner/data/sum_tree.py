"""Numbers whose sums are kept in a tree, so that some of them can be drawn in proportion to their size."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

WIDTH = 16
"""Children of a node. A call of numpy costs as much as 1,000 additions, so that few levels are worth wide nodes."""
LARGEST_TOP = 4096
_CHILDREN = np.arange(WIDTH)[:, None]


class SumTree:
    """``size`` numbers that are not negative, zero at first; a batch of them is changed or drawn by one call.

    A sum is always made anew from what it sums, and in the same order: it depends on the numbers alone, to the bit, and
    not on how they came to be.

    Attributes:
        levels: the numbers, padded with zeros; the sums of each 16 of those; and so on, up to at most 4,096 sums.
    """

    def __init__(self, size: int) -> None:
        depth = 0
        while (top := -(-size // WIDTH**depth)) > LARGEST_TOP:
            depth += 1
        self.levels = [np.zeros(top * WIDTH ** (depth - level)) for level in range(depth + 1)]
        self._before = np.zeros(top + 1)

    @property
    def numbers(self) -> Floats:
        return self.levels[0]

    @property
    def total(self) -> float:
        return float(np.cumsum(self.levels[-1])[-1])

    def set(self, indices: Integers, numbers: Floats | float) -> None:
        """Change numbers; where an index comes twice, its last number counts."""
        self.levels[0][indices] = numbers
        self._sum_up(indices)

    def set_range(self, start: int, stop: int, number: float) -> None:
        """Give all from ``start`` to before ``stop`` the same number."""
        self.levels[0][start:stop] = number
        self._sum_up(np.append(np.arange(start, stop, WIDTH), stop - 1))

    def _sum_up(self, indices: Integers) -> None:
        """Renew every sum that what is at ``indices`` is part of."""
        for level, sums in zip(self.levels, self.levels[1:], strict=False):
            indices = indices // WIDTH
            parts = level.take(indices * WIDTH + _CHILDREN)
            while (half := len(parts) // 2) > 0:  # numpy's own sum takes another order for another number of columns
                parts = parts[:half] + parts[half:]
            sums[indices] = parts[0]

    def find(self, points: Floats) -> Integers:
        """Where each point ``[B]`` of ``[0, 1)`` falls if the numbers are laid end to end on it.

        A number is found in proportion to its size, and never if it is zero; at least one must not be.
        """
        before = self._before
        np.cumsum(self.levels[-1], out=before[1:])
        left = np.minimum(points * before[-1], np.nextafter(before[-1], 0))
        nodes = before[1:].searchsorted(left, side="right")
        left -= before.take(nodes)
        columns = np.arange(len(points))
        for level in self.levels[-2::-1]:
            before = _cumulated(level.reshape(-1, WIDTH).take(nodes, axis=0))
            # The sum above was rounded in another order: what is left may pass the last child by a hair.
            left = np.minimum(left, np.nextafter(before[-1], 0))
            child = np.add.reduce((before[1:] <= left).view(np.int8), axis=0, dtype=np.int8).astype(np.int64)
            left -= before.take(child * len(points) + columns)
            nodes = nodes * WIDTH + child
        return nodes


def _cumulated(parts: Floats) -> Floats:
    """The sums ``[17, B]`` of the first 0, 1, ..., 16 of each row ``[B, 16]``: numpy's own takes thrice as long."""
    sums = np.zeros((WIDTH + 1, len(parts)))
    before = sums[0]
    for part, after in zip(parts.T, sums[1:], strict=True):
        np.add(before, part, after)
        before = after
    return sums
