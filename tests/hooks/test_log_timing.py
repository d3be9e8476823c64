import time

import pytest

from hooks.log_timing import LogTiming
from runner.points import POINTS
from runner.spec import ConfigError
from tests.toys import Call, trainer


def timed(total_frames=8, every=None, before=(), **options):
    one, hook, rows = trainer(total_frames, **options), LogTiming(every), []
    for call in before:
        call.register(one, str(call))
    hook.register(one)
    one.register_op("post_steps_log", lambda batch: rows.append(one.metrics.latest.copy()))
    return one, hook, rows


@pytest.mark.pins("LogTiming")
def test_each_phase_of_the_loop_is_clocked():
    one, _, rows = timed()
    started = time.perf_counter()
    one.train()
    passed = time.perf_counter() - started
    first, last = ({name: value for name, value in row.items() if "time_" in name} for row in rows)
    # What happens after this hook's own call is in the next row.
    assert {f"perf/time_{phase}" for phase in ("collect", "losses", "save_and_log", *POINTS)} == set(last)
    assert all(value >= 0 for value in last.values())
    assert 0.3 * passed < sum(first.values()) + sum(last.values()) < passed


@pytest.mark.pins("LogTiming")
@pytest.mark.parametrize("point", ["batch_process", "pre_optim_steps", "post_loss", "post_optim_log", "post_steps"])
def test_time_is_put_down_to_the_point_where_it_was_spent(point):
    def sleep(batch=None):
        time.sleep(0.02)
        return batch if POINTS[point] == "data" else None

    operation = (lambda: sleep()) if point in ("pre_optim_steps", "post_steps") else sleep
    one, _, rows = timed(4)
    one.register_op(point, operation)
    one.train()
    times = {name: value for name, value in rows[-1].items() if "time_" in name}
    assert 0.02 <= times[f"perf/time_{point}"] < 0.2
    assert max(times, key=times.get) == f"perf/time_{point}"


def test_seconds_are_those_since_the_row_before():
    sleeper = Call("post_steps", lambda: time.sleep(0.01))
    one, _, rows = timed(24, {"batches": 3}, before=[sleeper])
    one.train()
    seen = [row.get("perf/time_post_steps") for row in rows]
    assert seen[:2] == [None, None]
    assert all(0.03 <= value < 0.1 for value in (seen[2], seen[5]))


@pytest.mark.pins("LogTiming", excludes="the timers belong to the process, not to a trainer")
def test_nothing_is_clocked_without_it():
    one, hook, _ = timed()
    other = trainer()
    one.train()
    assert "_process" in vars(one)
    assert not {"_process", "_operate", "_log", "_optimize", "_safe_point", "_batches"} & vars(other).keys()
    one.unregister(hook)
    assert "_process" not in vars(one)
    assert "compute_losses" not in vars(one.learner)


@pytest.mark.slow
def test_it_costs_little(record_property):
    """Its clocks of a batch with one update, beside the 560 us of CleanRL's work by a loop without any library."""
    hook, costs = LogTiming(), []
    clocked = hook._clock_point(lambda point: None)
    for function in (clocked, lambda point: None) * 5:
        started = time.process_time()
        for _ in range(100_000):
            function("post_steps")
        costs.append((time.process_time() - started) / 100_000)
    extra = 12 * (min(costs[::2]) - min(costs[1::2]))
    record_property("note", f"LogTiming: {extra * 1e6:.1f} us for each batch with one update")
    assert extra < 0.01 * 560e-6


def test_a_second_one_is_refused_and_the_first_can_be_replaced():
    one, hook, _ = timed()
    with pytest.raises(ConfigError, match="again: this trainer is clocked by a LogTiming already"):
        LogTiming().register(one, "again")
    one.unregister(hook)
    LogTiming().register(one)
