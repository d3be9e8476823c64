"""Killed anywhere and resumed, a run is the same run: weights, moments, replay rows, generators, counters, CSV rows."""

import os
import signal
import time

import pytest

from tests.whole.runs import compose, differences, rows_of, run_in_child, state_of

BACKENDS = ("torchsnapshot", "torch")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run_in_child(compose(), folder, resume=False) == 0, (folder / "child.txt").read_text()
    return state_of(folder), rows_of(folder)


def assert_same_run(folder, uninterrupted):
    state, rows = uninterrupted
    assert differences(state_of(folder), state) == []
    assert rows_of(folder) == rows


def is_killed(status):
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def resume(config, folder):
    assert run_in_child(config, folder, resume=True) == 0, (folder / "child.txt").read_text()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("after_step", [500, 1500])
def test_a_run_killed_between_saves_resumes_bit_for_bit(tmp_path, uninterrupted, backend, after_step):
    config = compose(f"checkpoint.backend={backend}")
    seen = []

    def kill():
        if (tmp_path / "ckpt" / f"step-{after_step}").exists():
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] > 0.02  # some way on, at no particular instant

    assert is_killed(run_in_child(config, tmp_path, resume=False, kill=kill))
    resume(config, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_killed_inside_a_save_resumes_bit_for_bit(tmp_path, uninterrupted, backend):
    config = compose(f"checkpoint.backend={backend}")
    checkpoints = tmp_path / "ckpt"

    def is_saving():
        return checkpoints.exists() and any(".tmp-" in entry.name for entry in os.scandir(checkpoints))

    def is_saving_again():  # so that there is a checkpoint to go on from
        return (checkpoints / "step-500").exists() and is_saving()

    for attempt in range(10):
        assert is_killed(run_in_child(config, tmp_path, resume=attempt > 0, kill=is_saving_again))
        if is_saving():
            break
    assert is_saving(), "no kill left a half-written checkpoint behind"
    resume(config, tmp_path)
    assert_same_run(tmp_path, uninterrupted)
    assert not is_saving()


def test_a_run_stopped_by_sigterm_is_preempted_and_resumes_bit_for_bit(tmp_path, uninterrupted):
    config = compose()
    at_step = tmp_path / "ckpt" / "step-1000"
    status = run_in_child(config, tmp_path, resume=False, kill=at_step.exists, by=signal.SIGTERM)
    assert os.waitstatus_to_exitcode(status) == 75
    assert '"status": "preempted"' in (tmp_path / "run.json").read_text()
    resume(config, tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_total_frames_may_grow_and_the_longer_run_is_the_one_that_was_never_short(tmp_path):
    constant = "scheduler=constant"  # a schedule over the whole run depends on how long that is
    short, long = tmp_path / "short", tmp_path / "long"
    assert run_in_child(compose(constant, "total_frames=1500"), short, resume=False) == 0
    assert run_in_child(compose(constant), long, resume=False) == 0
    resume(compose(constant), short)
    assert_same_run(short, (state_of(long), rows_of(long)))


def test_a_hyper_parameter_given_on_resume_wins_over_the_checkpoint(tmp_path):
    constant = "scheduler=constant"
    assert run_in_child(compose(constant, "total_frames=1500"), tmp_path, resume=False) == 0
    resume(compose(constant, "optimizer.lr=1e-5", "total_frames=2000"), tmp_path)
    assert rows_of(tmp_path)[-1]["lr/default"] == "1e-05"


def test_the_comparison_notices_one_changed_bit(uninterrupted):
    state, _ = uninterrupted
    changed = {**state, "progress": {**state["progress"], "updates": state["progress"]["updates"] + 1}}
    assert differences(changed, state) == ["/progress/updates"]
