import time

import pytest
import torch

from runner.learner.metrics import LearnerMetrics


def logged(values, reduce, **options):
    metrics = LearnerMetrics()
    for value in values:
        metrics.log_value("x", value, reduce, **options)
    return metrics


def test_each_reduction_is_what_its_name_says_and_begins_anew_where_it_should():
    # a mean without a window moves: 1, then 0.99 * 1 + 0.01 * 5 = 1.04, then 0.99 * 1.04 + 0.01 * 3 = 1.0596
    expected = {
        "mean": (1.0596, 1.0596 * 0.99 + 0.08),
        "last": (3, 8),
        "sum": (9, 8),
        "lifetime_sum": (9, 17),
        "min": (1, 8),
        "max": (5, 8),
        "series": ([1, 5, 3], [8]),
    }
    for reduce, (first, second) in expected.items():
        metrics = logged([1, 5, 3], reduce)
        assert metrics.peek("x") == pytest.approx(first), reduce
        assert metrics.reduce()["x"] == pytest.approx(first), reduce
        metrics.log_value("x", 8, reduce)
        assert metrics.reduce()["x"] == pytest.approx(second), reduce


def test_a_window_is_the_mean_of_the_latest_values():
    metrics = logged([1, 2, 3, 4, 5], "mean", window=2)
    assert metrics.reduce()["x"] == 4.5
    assert metrics.reduce()["x"] == 4.5


def test_percentiles_lie_between_values_and_begin_anew_or_follow_a_window():
    # 0 to 10: the value at p percent of the way is p / 10; of the last two, 9 and 10, it is 9 + p / 100
    expected = {"p0": 0, "p50": 5, "p75": 7.5, "p90": 9, "p95": 9.5, "p99": 9.9, "p100": 10}
    since, last = logged(range(11), "percentiles"), logged(range(11), "percentiles", window=2)
    assert since.reduce()["x"] == pytest.approx(expected)
    assert since.reduce() == {}
    for _ in range(2):
        assert last.reduce()["x"] == pytest.approx({key: 9 + int(key[1:]) / 100 for key in expected})


def test_time_is_told_in_seconds():
    metrics = LearnerMetrics()
    for _ in range(2):
        with metrics.log_time(("left", "seconds"), "sum"):
            time.sleep(0.01)
    assert 0.02 <= metrics.reduce()["left"]["seconds"] < 10


def test_an_average_may_move_faster():
    assert logged([0, 1], "mean", ema=0.5).peek("x") == 0.5


def test_to_peek_changes_nothing_and_gives_a_default_for_what_there_is_not():
    metrics = logged([2, 3], "sum")
    assert [metrics.peek("x"), metrics.peek("x"), metrics.reduce()["x"]] == [5, 5, 5]
    assert metrics.peek("y") is None
    assert metrics.peek(("module", "y"), 7) == 7


def test_values_are_told_by_module_and_name():
    metrics = LearnerMetrics()
    metrics.log_dict({("left", "loss/q"): 1.0, ("right", "loss/q"): 2.0}, "last")
    assert metrics.reduce() == {"left": {"loss/q": 1.0}, "right": {"loss/q": 2.0}}
    assert metrics.reduce() == {}  # what is nothing but the latest is told once
    assert metrics.peek(("left", "loss/q")) == 1.0
    metrics.remove("left")
    assert [metrics.peek((one, "loss/q")) for one in ("left", "right")] == [None, 2.0]


def test_tensors_are_read_when_somebody_asks():
    metrics, value = LearnerMetrics(), torch.tensor(3.0)
    metrics.log_value("x", value, "last")
    assert metrics._stats[("x",)]._values[0] is value
    assert metrics.peek("x") == 3.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reduce": "median"}, "no way to reduce by 'median'"),
        ({"reduce": "sum", "window": 3}, "go with reduce='mean'"),
        ({"reduce": "last", "ema": 0.1}, "go with reduce='mean'"),
        ({"reduce": "mean", "window": 3, "ema": 0.1}, "a window or an ema"),
        ({"reduce": "mean", "window": 0}, "a window of 0 values"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        LearnerMetrics().log_value("x", 1, **options)


@pytest.mark.parametrize("reduce", ["mean", "last", "sum", "lifetime_sum", "min", "max", "series", "percentiles"])
def test_a_state_goes_on_where_it_was(reduce):
    whole, first, second = logged([1, 5], reduce), logged([1, 5], reduce), LearnerMetrics()
    second.load_state_dict(first.state_dict())
    for value in (4, 2):
        whole.log_value("x", value, reduce)
        second.log_value("x", value, reduce)
    assert second.reduce() == whole.reduce()
    assert second.reduce() == whole.reduce()


def test_sums_of_learners_beside_one_another_add_up():
    one, other = logged([1, 2], "lifetime_sum"), logged([10], "lifetime_sum")
    other.reduce()
    other.log_value("x", 5, "lifetime_sum")
    other.log_value("y", 3, "sum")
    one.merge([other])
    assert one.reduce() == {"x": 18, "y": 3}
