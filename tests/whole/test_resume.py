"""Killed anywhere and resumed, a run is the same run: weights, moments, replay rows, generators, counters, CSV rows."""

import shutil
import signal
import time

import pytest

from runner.runs import read_run
from tests.whole.children import fork, half_written
from tests.whole.runs import compose, differences, end_of, rows_of

BACKENDS = ("torchsnapshot", "torch")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return whole(compose(), tmp_path_factory.mktemp("uninterrupted") / "run")


def whole(config, folder):
    """Begin a run, or go on with one, to its end."""
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return end_of(config, folder)


def wait_until(happened, child):
    while not happened():
        assert not child.has_ended(0.0005), child.output()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("after_step", [500, 1500])
def test_a_run_killed_between_saves_resumes_bit_for_bit(tmp_path, uninterrupted, backend, after_step):
    config, folder = compose(f"checkpoint.backend={backend}"), tmp_path / "run"
    child = fork(config, folder)
    wait_until((folder / "ckpt" / f"step-{after_step}").exists, child)
    time.sleep(0.02)  # some way on, at no particular instant
    assert child.kill() == -signal.SIGKILL
    assert differences(whole(config, folder), uninterrupted) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_killed_inside_a_save_resumes_bit_for_bit(tmp_path, uninterrupted, backend):
    config, folder = compose(f"checkpoint.backend={backend}"), tmp_path / "run"

    def is_saving_again():  # so that there is a checkpoint to go on from
        return (folder / "ckpt" / "step-500").exists() and half_written(folder)

    for _ in range(10):
        child = fork(config, folder)
        wait_until(is_saving_again, child)
        assert child.kill() == -signal.SIGKILL
        if half_written(folder):
            break
    assert half_written(folder), "no kill left a half-written checkpoint behind"
    assert differences(whole(config, folder), uninterrupted) == []
    assert not half_written(folder)


def test_a_run_stopped_by_sigterm_is_preempted_and_resumes_bit_for_bit(tmp_path, uninterrupted):
    config, folder = compose(), tmp_path / "run"
    child = fork(config, folder)
    wait_until((folder / "ckpt" / "step-1000").exists, child)
    child.send(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert '"status": "preempted"' in (folder / "run.json").read_text()
    assert differences(whole(config, folder), uninterrupted) == []


def test_a_killed_run_whose_checkpoints_were_removed_does_not_begin_anew(tmp_path):
    config, folder = compose(), tmp_path / "run"
    child = fork(config, folder)
    wait_until(lambda: (folder / "run.json").exists() and read_run(folder).get("saved_env_steps"), child)
    assert child.kill() == -signal.SIGKILL
    assert read_run(folder)["status"] == "running"
    shutil.rmtree(folder / "ckpt")
    rows = (folder / "metrics.csv").read_bytes()
    again = fork(config, folder)
    assert again.wait() == 3, again.output()
    assert "the checkpoints of this run are gone" in again.output()
    assert (folder / "metrics.csv").read_bytes() == rows


def test_total_frames_may_grow_and_the_longer_run_is_the_one_that_was_never_short(tmp_path):
    constant = "scheduler=constant"  # a schedule over the whole run depends on how long that is
    whole(compose(constant, "total_frames=1500"), tmp_path / "short")
    assert differences(whole(compose(constant), tmp_path / "short"), whole(compose(constant), tmp_path / "long")) == []


def test_a_hyper_parameter_given_on_resume_wins_over_the_checkpoint(tmp_path):
    constant = "scheduler=constant"
    whole(compose(constant, "total_frames=1500"), tmp_path / "run")
    whole(compose(constant, "optimizer.lr=1e-5", "total_frames=2000"), tmp_path / "run")
    assert rows_of(tmp_path / "run")[-1]["lr/default"] == "1e-05"


def test_the_comparison_notices_one_changed_bit(uninterrupted):
    state = uninterrupted["state"]
    changed = {**state, "progress": {**state["progress"], "updates": state["progress"]["updates"] + 1}}
    assert differences(changed, state) == ["/progress/updates"]
