"""Saves in the background: what they promise to a run that goes on meanwhile."""

import logging
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from runner.checkpoint import store as store_module
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError, Deferred


@pytest.fixture(params=["torchsnapshot", "torch"])
def store(request, tmp_path):
    return CheckpointStore(tmp_path, backend=request.param)


def begin(store, step, state):
    store.save_in_background(state, {"env_steps": step})


def test_what_is_saved_is_the_state_at_the_call_whatever_happens_to_it_afterwards(store):
    weight, numbers = torch.zeros(1_000_000), [1, 2]
    begin(store, 1, {"a": {"weight": weight, "numbers": numbers}})
    weight.fill_(7)
    numbers.append(3)
    state, _ = store.load()  # waits
    assert state["a"]["weight"].count_nonzero() == 0
    assert state["a"]["numbers"] == [1, 2]


def test_saves_do_not_overtake_one_another_and_reuse_their_copies(store):
    weight = torch.zeros(300_000)
    for step in range(5):
        weight.fill_(step)
        begin(store, step, {"a": weight})
    assert store.wait().name == "step-4"
    assert sorted(os.listdir(store.folder)) == ["step-3", "step-4"]
    for step in (4, 3):
        state, manifest = store.load()
        assert manifest["counters"]["env_steps"] == step
        assert (state["a"] == step).all()
        os.rename(store.folder / f"step-{step}", store.folder.parent / f"seen-{step}")


def test_a_growing_state_is_copied_whole(store):
    for step in range(1, 4):
        begin(store, step, {"rows": torch.arange(step * 1000)})
    assert store.load()[0]["rows"].tolist() == list(range(3000))


def test_the_caller_waits_only_for_the_copy(store):
    may_finish = threading.Event()
    begin(store, 1, {"rows": torch.ones(1000), "deferred": Deferred(lambda: may_finish.wait(20))})
    assert store.folders() == []  # the writer waits for what comes only now
    may_finish.set()
    assert store.wait().name == "step-1"
    assert store.load()[0]["deferred"] is True


def test_a_state_too_large_to_copy_is_written_while_the_caller_waits(store, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_COPIED_BYTES", 1000)
    weight = torch.zeros(1000)
    begin(store, 1, {"a": weight})
    assert (store.folder / "step-1").is_dir()
    weight.fill_(7)
    assert store.load()[0]["a"].count_nonzero() == 0


def test_deferred_work_is_done_by_the_writer_before_the_checkpoint_counts(store):
    seen = []

    def work():
        seen.append((threading.current_thread() is threading.main_thread(), store.folders()))
        return {"rows": [1, 2]}

    begin(store, 1, {"logger": {"durable": Deferred(work)}})
    assert store.load()[0] == {"logger": {"durable": {"rows": [1, 2]}}}
    assert seen == [(False, [])]


def test_deferred_work_that_fails_fails_the_save(store):
    def work():
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        store.save({"a": Deferred(work)}, {"env_steps": 1})
    assert os.listdir(store.folder) == []


@contextmanager
def small_files():
    """Files of more than 20,000 bytes cannot be written; no fixture, as pytest writes before those end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_save_that_fails_is_told_at_once_and_again_by_wait_and_the_next_one_is_tried(store, caplog):
    begin(store, 1, {"a": 1})
    assert store.wait().name == "step-1"
    with small_files():
        begin(store, 2, {"a": torch.zeros(100_000)})
        store.finish()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "no checkpoint could be written" in warning
    assert "\n" not in warning
    with pytest.raises(CheckpointError, match="no checkpoint could be written"):
        store.wait()
    assert os.listdir(store.folder) == ["step-1"]
    begin(store, 3, {"a": 3})
    assert store.wait().name == "step-3"
    assert sorted(os.listdir(store.folder)) == ["step-1", "step-3"]


def test_a_save_that_is_awaited_does_not_fail_for_the_one_before(store):
    with small_files():
        begin(store, 2, {"a": torch.zeros(100_000)})
        assert store.save({"a": 3}, {"env_steps": 3}).name == "step-3"


def test_what_cannot_be_saved_is_told_to_the_caller(store):
    with pytest.raises(TypeError, match=r"^hooks\.cache: set"):
        begin(store, 1, {"hooks": {"cache": set()}})


def test_a_forked_process_can_save_too(store):
    begin(store, 1, {"a": 1})
    store.finish()
    pid = os.fork()
    if pid == 0:
        begin(store, 2, {"a": 2})
        os._exit(0 if store.wait().name == "step-2" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.load()[0]["a"] == 2


ENDING = """
import sys, torch
from runner.checkpoint.store import CheckpointStore
store = CheckpointStore(sys.argv[1], backend=sys.argv[2])
store.save({"weight": torch.zeros(5)}, {"env_steps": 1})
store.save_in_background({"weight": torch.zeros(3_000_000)}, {"env_steps": 2})
raise RuntimeError("the run crashed")
"""


@pytest.mark.slow
def test_a_process_that_crashes_during_a_save_leaves_nothing_half_written(tmp_path):
    store = CheckpointStore(tmp_path)
    run = [sys.executable, "-c", ENDING, str(tmp_path), store.backend]
    crashed = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert crashed.returncode == 1
    assert "the run crashed" in crashed.stderr
    assert store.load()[1]["counters"]["env_steps"] in (1, 2)
    assert [name for name in os.listdir(store.folder) if ".tmp-" in name] == []
