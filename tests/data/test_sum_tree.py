"""The tree against a naive one, which adds up all numbers in their order."""

import numpy as np
import pytest

from runner.data import sum_tree
from runner.data.sum_tree import SumTree


def put(tree, indices, numbers):
    tree.set(np.asarray(indices), np.asarray(numbers, np.float64))


def find(tree, points):
    return tree.find(np.asarray(points, np.float64)).tolist()


def levels(tree):
    tree.find(np.zeros(1))  # sums are made when they are asked for
    return [level.tolist() for level in tree.levels]


class Naive:
    """The same by a plain loop."""

    def __init__(self, size):
        self.numbers = [0.0] * size

    def set(self, indices, numbers):
        for index, number in zip(indices, numbers, strict=True):
            self.numbers[index] = float(number)

    def find(self, point):
        left = point * sum(self.numbers)
        for index, number in enumerate(self.numbers):
            if left < number:
                return index
            left -= number
        raise AssertionError("the point is behind the last number")


@pytest.fixture(params=[1, 5, 1024], ids=lambda top: f"top{top}")
def largest_top(request, monkeypatch):
    """Trees of several heights."""
    monkeypatch.setattr(sum_tree, "LARGEST_TOP", request.param)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 300, 5000])
def test_it_is_the_same_as_a_naive_one_after_random_changes(size, largest_top):
    random = np.random.default_rng(size)
    tree, naive = SumTree(size), Naive(size)
    for count in random.integers(1, 40, 20):
        indices = random.integers(0, size, count)
        # Whole numbers, whose sums are exact in either order; some of them zero.
        numbers = random.integers(0, 4, count).astype(float)
        put(tree, indices, numbers)
        naive.set(indices, numbers)
        assert tree.numbers[:size].tolist() == naive.numbers
        assert tree.total == sum(naive.numbers)
        if tree.total:
            # Points between two whole numbers, where rounding makes no difference.
            points = (random.integers(0, int(tree.total), 30) + 0.5) / tree.total
            assert find(tree, points) == [naive.find(point) for point in points]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 300), (15, 17), (31, 290), (299, 300)])
def test_a_range_is_set_like_its_indices(start, stop, largest_top):
    one, other = SumTree(300), SumTree(300)
    for tree in (one, other):
        put(tree, np.arange(300), np.linspace(0.1, 1, 300))
    one.set_range(start, stop, 0.3)
    put(other, np.arange(start, stop), np.full(stop - start, 0.3))
    assert levels(one) == levels(other)


def test_ranges_that_follow_one_another_are_one(largest_top):
    one, other = SumTree(3000), SumTree(3000)
    for start, stop in ((0, 7), (7, 8), (8, 40), (100, 2000), (2000, 2001), (5, 6)):
        one.set_range(start, stop, 0.1 + start)
        put(other, np.arange(start, stop), np.full(stop - start, 0.1 + start))
    assert levels(one) == levels(other)


def test_sums_depend_on_the_numbers_alone_to_the_bit(largest_top):
    random = np.random.default_rng(0)
    one, other = SumTree(3000), SumTree(3000)
    for count in (1, 3, 500, 2, 40, 1000, 7):
        put(one, random.integers(0, 3000, count), random.random(count))
        one.set_range(count, count + 5, 0.7)
        levels(one)
    put(other, np.arange(3000), one.numbers[:3000])
    assert levels(one) == levels(other)


@pytest.mark.parametrize("points", [[0.0], [1 - 2**-53], [0.0, 0.5, 1 - 2**-53]])
def test_what_is_zero_is_never_found(points, largest_top):
    random = np.random.default_rng(1)
    for _ in range(50):
        tree = SumTree(1000)
        held = random.choice(1000, 3, replace=False)
        put(tree, held, random.random(3) * 10.0 ** random.integers(-12, 12, 3))
        assert set(find(tree, points)) <= set(held.tolist())


def test_the_last_of_an_index_that_comes_twice_counts():
    tree = SumTree(20)
    put(tree, [3, 3], [5.0, 2.0])
    assert (tree.numbers[3], tree.total) == (2, 2)


def test_numbers_are_found_in_proportion_to_their_size(largest_top):
    random = np.random.default_rng(2)
    sizes = random.random(200) + 0.01
    tree = SumTree(200)
    put(tree, np.arange(200), sizes)
    expected = 200_000 * sizes / sizes.sum()
    counts = np.bincount(find(tree, random.random(200_000)), minlength=200)
    # 199 degrees of freedom: 99.9 % of chi-square values are below 266.4, and 99.9 % above 144.0.
    assert 144.0 < ((counts - expected) ** 2 / expected).sum() < 266.4
