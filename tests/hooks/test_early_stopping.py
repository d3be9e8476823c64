from itertools import chain, repeat

import pytest

from hooks.early_stopping import EarlyStopping
from tests.toys import trainer


def stopped(values, *, every=1, total_frames=80, load=None, **options):
    """The trainer after a run that logged ``values``, one each ``every`` batches of 4 env steps, and the hook."""
    one, hook = trainer(total_frames), EarlyStopping("eval/return_mean", **options)
    numbers = chain.from_iterable(chain([value], repeat(None, every - 1)) for value in values)
    one.register_op("post_steps_log", lambda batch: log(next(numbers, None)))
    hook.register(one)
    if load:
        hook.load_state_dict(load)
    one.train()
    return one, hook


def log(value):
    return None if value is None else {"eval/return_mean": float(str(value))}


def batches(values, **options):
    one, _ = stopped(values, **options)
    return one.progress.batches, one.stop_reason


def test_reaching_the_threshold_ends_the_run():
    assert batches([1.0, 9.0, 10.0, 11.0], threshold=10) == (3, "eval/return_mean reached 10")


@pytest.mark.pins("EarlyStopping")
def test_a_run_without_improvement_ends_after_the_patience():
    # 5 is best, then 4 5 3 are three values that are no better.
    assert batches([1.0, 5.0, 4.0, 5.0, 3.0, 9.0], patience=3) == (5, "eval/return_mean has not improved on 5 3 times")


def test_an_improvement_begins_the_patience_anew():
    assert batches([1.0, 0.0, 2.0, 1.0, 3.0, 2.0, 2.5], patience=2)[0] == 7


def test_a_small_improvement_does_not_count():
    assert batches([1.0, 1.05, 1.15, 1.2, 1.22], patience=2, min_delta=0.1)[0] == 5  # only 1.15 > 1 + 0.1 counts


def test_lower_is_better_in_min_mode():
    assert batches([3.0, 2.0, 1.0, 5.0], mode="min", threshold=1.0) == (3, "eval/return_mean reached 1")
    assert batches([3.0, 2.0, 2.5, 4.0], mode="min", patience=2)[1] == "eval/return_mean has not improved on 2 2 times"


def test_only_new_values_are_judged():
    assert batches([5.0, 4.0, 4.0, 3.0], every=3, patience=3) == (10, "eval/return_mean has not improved on 5 3 times")


def test_equal_values_one_after_the_other_are_new_ones():
    assert batches([5.0, 5.0, 5.0], patience=2)[0] == 3


@pytest.mark.pins("EarlyStopping", excludes="raises where the metric was not logged yet")
def test_a_metric_that_is_never_logged_does_not_end_the_run():
    assert batches([], patience=1) == (20, "total_frames")


def test_a_value_that_is_no_number_is_no_improvement_and_hides_none():
    assert batches([float("nan"), 1.0, 2.0, 3.0, 4.0], patience=2, check_finite=False) == (20, "total_frames")


@pytest.mark.parametrize(("mode", "value"), [("max", "nan"), ("max", "inf"), ("min", "inf"), ("min", "-inf")])
def test_a_value_that_is_not_finite_ends_the_run_at_once(mode, value):
    assert batches([1.0, float(value), 2.0], mode=mode) == (2, f"eval/return_mean is {value}, and not finite")


def test_what_is_logged_before_the_wait_is_over_is_never_judged():
    values = [9.0, float("nan"), 1.0, 2.0, 1.0, 1.0]  # at 4, 8, 12 ... env steps
    found = batches(values, wait_for={"env_steps": 12}, patience=2, threshold=9)
    assert found == (6, "eval/return_mean has not improved on 2 2 times")
    late = batches([5.0], every=3, wait_for={"batches": 2}, patience=1, threshold=5)
    assert late == (20, "total_frames")


@pytest.mark.pins("EarlyStopping")
def test_best_and_patience_survive_a_resume():
    _, hook = stopped([5.0, 4.0], total_frames=8, patience=3)
    one, _ = stopped([4.0, 3.0, 9.0], patience=3, load=hook.state_dict())
    assert (one.progress.batches, one.stop_reason) == (2, "eval/return_mean has not improved on 5 3 times")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_without_a_threshold_none_is_reached(mode):
    assert batches([1.0, 2.0, 1.0, 2.0], mode=mode, patience=100)[1] == "total_frames"


def test_a_monitor_that_was_never_logged_is_told_of_once(caplog):
    one, hook = trainer(16), EarlyStopping("eval/retrun_mean")
    one.register_op("post_steps_log", lambda batch: log(1.0))
    hook.register(one)
    one.train()
    hook.close()
    hook.close()
    assert len(caplog.messages) == 1
    assert "eval/retrun_mean was never logged in this run; logged were eval/return_mean" in caplog.text


def test_a_monitor_that_was_logged_is_not_told_of(caplog):
    stopped([1.0, 2.0])[1].close()
    assert caplog.messages == []
