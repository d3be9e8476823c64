import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runner.checkpoint.tree import flatten, unflatten
from runner.metrics import Gauge, Metrics
from runner.spec import Progress


class Rows:
    """A logger that keeps its rows."""

    def __init__(self, offset=0):
        self.rows, self.offset, self.hparams, self.closed = [], offset, [], None

    def log_hparams(self, parameters):
        self.hparams.append(dict(parameters))

    def log_row(self, row):
        self.rows.append(dict(row))

    def flush(self):
        self.offset = len(self.rows)

    def close(self, status):
        self.closed = status

    def state_dict(self):
        return {"offset": self.offset}

    def load_state_dict(self, state):
        self.offset = state["offset"]


def row_of(*values, progress=None):
    metrics = Metrics()
    for value in values:
        metrics.add(value)
    return metrics.write_row(progress or Progress())


def test_a_row_holds_means_since_the_row_before():
    metrics = Metrics()
    for value in (1.0, 2.0, 6.0):
        metrics.add({"loss/q": value})
    assert metrics.write_row(Progress())["loss/q"] == 3.0
    metrics.add({"loss/q": 5.0})
    assert metrics.write_row(Progress())["loss/q"] == 5.0
    assert "loss/q" not in metrics.write_row(Progress())


def test_tensors_and_numbers_mix():
    assert row_of({"x": torch.tensor(1.0)}, {"x": 2.0}, {"x": torch.tensor(6, dtype=torch.int64)})["x"] == 3.0
    assert row_of({"x": torch.tensor(1.0, dtype=torch.float64)}, {"x": torch.tensor(2.0)})["x"] == 1.5
    assert row_of({"x": torch.tensor(4.0, requires_grad=True)})["x"] == 4.0


def test_means_are_taken_in_double_precision():
    # In float32 the sum 2^24 + 1 + 1 stays 2^24.
    values = [{"x": torch.tensor(value)} for value in (2.0**24, 1.0, 1.0)]
    assert row_of(*values)["x"] == (2**24 + 2) / 3


def test_counts_keep_the_latest():
    assert row_of({"buffer/size": 10}, {"buffer/size": 20}, {"buffer/size": 30})["buffer/size"] == 30.0


def test_a_row_begins_with_the_counters_and_ends_with_what_is_given():
    metrics = Metrics()
    row = metrics.write_row(Progress(env_steps=5, frames=20, updates=3, episodes=2), {"lr/q": 0.1})
    assert row == {"env_steps": 5, "frames": 20, "updates": 3, "episodes": 2, "lr/q": 0.1}


def test_the_rate_counts_from_the_row_before():
    metrics, progress = Metrics(), Progress(env_steps=100, seconds=4.0)
    assert metrics.write_row(progress)["perf/env_steps_per_second"] == 25.0
    progress.env_steps, progress.seconds = 300, 6.0
    assert metrics.write_row(progress)["perf/env_steps_per_second"] == 100.0  # 200 in 2 s
    assert "perf/env_steps_per_second" not in metrics.write_row(progress)


def test_every_logger_gets_every_row_and_every_call():
    loggers = [Rows(), Rows()]
    metrics = Metrics(loggers)
    metrics.log_hparams({"lr": 0.1})
    metrics.add({"x": 1.0})
    row = metrics.write_row(Progress())
    metrics.flush()
    metrics.close("done")
    for logger in loggers:
        assert (logger.rows, logger.hparams, logger.offset, logger.closed) == ([row], [{"lr": 0.1}], 1, "done")


def test_the_latest_of_each_is_at_hand():
    metrics = Metrics()
    metrics.add({"x": 1.0, "y": 2.0})
    metrics.add({"x": 3.0})
    assert metrics.latest == {"x": 3.0, "y": 2.0}


def test_the_last_row_remembers_what_later_rows_lack():
    metrics = Metrics()
    metrics.add({"eval/return_mean": 7.0})
    metrics.write_row(Progress(env_steps=1))
    metrics.write_row(Progress(env_steps=2))
    assert metrics.last_row["eval/return_mean"] == 7.0
    assert metrics.last_row["env_steps"] == 2


class Operations(TorchDispatchMode):
    """Records every operation torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_adding_a_tensor_asks_torch_for_nothing_and_a_row_waits_once_for_each_name():
    metrics, losses = Metrics(), [torch.tensor(float(value)) for value in range(50)]
    with Operations() as adding:
        for loss in losses:
            metrics.add({"loss/q": loss, "grad_norm/q": loss})
    assert adding.names == []
    with Operations() as writing:
        metrics.write_row(Progress())
    assert writing.names.count("aten._local_scalar_dense.default") == 2  # two names, not a hundred values


def fill(metrics, values):
    for value in values:
        metrics.add({"loss/q": torch.tensor(value), "return": value, "size": int(value * 10), "mixed": mixed(value)})


def mixed(value):
    return torch.tensor(value) if int(value * 10) % 2 else value


def through_a_checkpoint(state):
    skeleton, tensors = flatten(state)
    return unflatten(json.loads(json.dumps(skeleton)), {name: tensor.clone() for name, tensor in tensors.items()})


@pytest.mark.parametrize("saved_after", range(1, 7))
def test_a_row_over_a_saved_window_is_the_same_to_the_bit(saved_after):
    values = [0.1, 0.7, 0.2, 1 / 3, 2 / 3, 0.9]
    whole, first, second = Metrics(), Metrics(), Metrics()
    progress = Progress(env_steps=10, seconds=2.0)
    for metrics in (whole, first):
        metrics.add({"eval/return_mean": 3.0})
        metrics.write_row(progress)
    fill(whole, values)
    fill(first, values[:saved_after])
    second.load_state_dict(through_a_checkpoint(first.state_dict()))
    fill(second, values[saved_after:])
    progress = Progress(env_steps=40, seconds=5.0)
    assert second.write_row(progress) == whole.write_row(progress)  # == on floats: every bit but the sign of zero
    assert second.last_row == whole.last_row
    assert second.last_row["perf/env_steps_per_second"] == 10.0


def test_a_saved_window_is_not_changed_by_what_is_added_later():
    metrics, restored = Metrics(), Metrics()
    metrics.add({"x": 1.0})
    state = metrics.state_dict()
    metrics.add({"x": 3.0})
    restored.load_state_dict(state)
    assert restored.write_row(Progress())["x"] == 1.0


def test_loggers_of_one_class_keep_their_own_states():
    saved, loaded = [Rows(1), Rows(2), Rows(3)], [Rows(), Rows(), Rows()]
    Metrics(loaded).load_state_dict(Metrics(saved).state_dict())
    assert [logger.offset for logger in loaded] == [1, 2, 3]


def test_a_logger_that_the_checkpoint_does_not_know_starts_afresh():
    loaded = [Rows(7), Rows(8)]
    Metrics(loaded).load_state_dict(Metrics([Rows(1)]).state_dict())
    assert [logger.offset for logger in loaded] == [1, 8]


def test_a_row_holds_the_latest_of_a_gauge_and_the_mean_of_other_numbers():
    metrics = Metrics()
    for value in (10.0, 100.0):
        metrics.add({"reading": Gauge(value), "other": value})
    row = metrics.write_row(Progress())
    assert (row["reading"], row["other"]) == (100.0, 55.0)


class Failing(Rows):
    """A logger that fails so many times."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    @property
    def failure(self):
        return "the disk is full" if self.times > 0 else None

    def flush(self):
        self.times -= 1


def test_rows_that_can_be_written_at_the_second_try_are_no_failure():
    metrics = Metrics([Rows(), Failing(1)])
    assert metrics.failure() is None
    assert metrics.failure() is None


def test_a_failure_that_a_run_was_told_of_holds_though_the_disk_works_again():
    metrics = Metrics([Failing(2)])
    assert metrics.failure() == "the disk is full"
    metrics.flush()
    assert metrics.loggers[0].failure is None
    assert metrics.failure() == "the disk is full"


class Shows(Rows):
    """A logger that shows videos and histograms, and fails at rows where it is told to."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.shown = fails, []

    def log_row(self, row):
        if self.fails:
            raise RuntimeError("out of order")
        super().log_row(row)

    def log_video(self, name, path, step, fps):
        self.shown.append((name, path, step, fps))

    def log_histogram(self, name, data, step, bins):
        self.shown.append((name, data, step))


def test_a_logger_that_fails_is_told_of_once_and_the_others_go_on(caplog):
    broken, whole = Shows(fails=True), Shows()
    metrics = Metrics([broken, whole])
    for env_steps in (1, 2, 3):
        metrics.write_row(Progress(env_steps=env_steps))
    assert len(whole.rows) == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "Shows fails at log_row; training goes on: RuntimeError: out of order"


@pytest.mark.parametrize(("axis", "step"), [("env_steps", 20), ("updates", 3)])
def test_videos_and_histograms_go_to_the_loggers_that_show_them_at_the_step_of_the_rows(axis, step):
    one = Shows()
    metrics, progress = Metrics([Rows(), one]), Progress(env_steps=5, frames=20, updates=3, axis=axis)
    metrics.log_video("video/a", "a.mp4", progress, 30.0)
    metrics.log_histogram("w", [1.0], progress)
    assert one.shown == [("video/a", "a.mp4", step, 30.0), ("w", [1.0], step)]
