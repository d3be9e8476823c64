import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runner.checkpoint.backends import BACKENDS
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError, Progress
from tests.checkpoint.parts import flip_bit, loaded_step, reseal, save_at, state_at, truncate


def test_what_is_saved_comes_back_bit_for_bit(store):
    state = {
        "a": {"weight": torch.randn(5, 7), "half": torch.randn(3).bfloat16(), "empty": torch.empty(0, 4)},
        "b": {"numpy": np.arange(3, dtype=np.uint32), "tuple": (1, 2.5, None), "big": 2**100, "nan": float("nan")},
        "c": {},
    }
    store.save(state, {"env_steps": 10})
    restored, _ = store.load()
    assert list(restored) == ["a", "b", "c"]
    assert all(torch.equal(restored["a"][name], tensor) for name, tensor in state["a"].items())
    assert restored["a"]["half"].dtype == torch.bfloat16
    assert restored["b"]["numpy"].dtype == np.uint32
    assert restored["b"]["numpy"].tolist() == [0, 1, 2]
    assert restored["b"]["tuple"] == (1, 2.5, None)
    assert restored["b"]["big"] == 2**100
    assert np.isnan(restored["b"]["nan"])


def test_the_manifest_says_what_was_written_where_and_with_what(tmp_path, backend):
    store = CheckpointStore(SimpleNamespace(path=tmp_path, git_sha="ab" * 20), backend=backend)
    folder = store.save(state_at(5), {"env_steps": 5, "updates": 2}, extra={"env_mode": "tape"})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert folder == tmp_path / "ckpt" / "step-5"
    assert manifest["counters"] == {"env_steps": 5, "updates": 2}
    assert manifest["components"] == ["learner", "rng"]
    assert (manifest["backend"], manifest["git"], manifest["extra"]) == (backend, "ab" * 20, {"env_mode": "tape"})
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["threads"] == torch.get_num_threads()
    entry = manifest["files"]["state.json"]
    raw = (folder / "state.json").read_bytes()
    assert entry == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_the_newest_is_loaded_and_two_are_kept(store):
    save_at(store, 10, 20, 30)
    assert sorted(os.listdir(store.folder)) == ["step-20", "step-30"]
    assert loaded_step(store) == 30


def test_a_checkpoint_written_by_either_backend_is_read_by_both(tmp_path):
    CheckpointStore(tmp_path, backend="torch").save(state_at(1), {"env_steps": 1})
    state, _ = CheckpointStore(tmp_path, backend="torchsnapshot").load()
    assert torch.equal(state["learner"]["weight"], torch.ones(3, 2))


def test_tensors_can_be_restored_in_place(store):
    save_at(store, 7)
    weight = torch.zeros(3, 2)
    state, _ = store.load(into={"learner/weight": weight})
    assert weight.tolist() == [[7, 7], [7, 7], [7, 7]]
    assert state["learner"]["weight"].data_ptr() == weight.data_ptr()


def test_the_same_content_at_the_same_step_is_kept_once(store):
    assert save_at(store, 5)[0] == save_at(store, 5)[0]
    assert os.listdir(store.folder) == ["step-5"]


def test_other_content_at_the_same_step_gets_a_new_name_and_wins(store):
    save_at(store, 5)
    folder = store.save(state_at(6), {"env_steps": 5})
    assert folder.name == "step-5.r1"
    assert store.load()[0]["rng"]["numbers"][0] == 6


def test_a_second_run_in_the_same_folder_is_newer_though_its_steps_are_smaller(tmp_path, backend):
    save_at(CheckpointStore(tmp_path, backend=backend), 1000, 2000)
    second = CheckpointStore(tmp_path, backend=backend)
    save_at(second, 100)
    assert loaded_step(second) == 100


def test_an_empty_folder_is_an_error_of_its_own(store):
    with pytest.raises(CheckpointError, match="there is none"):
        store.load()
    assert store.folders() == []


def test_a_damaged_checkpoint_does_not_count_among_those_kept(store):
    first, second = save_at(store, 10, 20)
    fresh = CheckpointStore(store.folder.parent, backend=store.backend)
    truncate(second / "state.json")
    save_at(fresh, 30)
    assert first.exists()
    assert sorted(os.listdir(fresh.folder)) == ["step-10", "step-20", "step-30"]
    save_at(fresh, 40)
    assert sorted(os.listdir(fresh.folder)) == ["step-30", "step-40"]


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_ignored_and_removed_at_the_next_save(store):
    save_at(store, 10)
    left = store.folder / f"step-20.tmp-{dead_pid()}-0123abcd"
    shutil.copytree(store.folder / "step-10", left)
    nobodys = store.folder / "step-20.tmp-99999999999999999999-0123abcd"
    nobodys.mkdir()
    alive = store.folder / f"step-20.tmp-{os.getppid()}-0123abcd"
    alive.mkdir()
    assert loaded_step(store) == 10
    assert store.rejected == []
    save_at(store, 30)
    assert sorted(os.listdir(store.folder)) == ["step-10", alive.name, "step-30"]


def save_without_end(folder, how):
    store, weight = CheckpointStore(folder, backend="torch"), torch.zeros(2_000_000)
    for step in range(1_000_000):
        getattr(store, how)({"weight": weight + step}, {"env_steps": step})


@pytest.mark.parametrize("how", ["save", "save_in_background"])
def test_a_kill_inside_a_save_leaves_the_one_before(tmp_path, how):
    pid = os.fork()
    if pid == 0:
        try:
            save_without_end(tmp_path, how)
        finally:
            os._exit(1)
    folder = tmp_path / "ckpt"
    deadline = time.monotonic() + 60
    while not (folder / "step-1").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    while not list(folder.glob("*.tmp-*/payload")) and time.monotonic() < deadline:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert list(folder.glob("*.tmp-*")), "the kill did not fall into a save"
    store = CheckpointStore(tmp_path, backend="torch")
    state, manifest = store.load()
    assert store.rejected == []
    assert (state["weight"] == manifest["counters"]["env_steps"]).all()
    store.save({"weight": torch.zeros(1)}, {"env_steps": 10**6})
    assert not list(folder.glob("*.tmp-*"))


def test_a_save_that_fails_leaves_no_trace_and_one_line(store):
    save_at(store, 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            store.save({"weight": torch.zeros(100_000)}, {"env_steps": 20})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert os.listdir(store.folder) == ["step-10"]
    assert loaded_step(store) == 10


def test_a_disk_that_holds_other_bytes_than_were_written_is_noticed_before_it_matters(store, monkeypatch):
    first, second = save_at(store, 10, 20)
    write = type(BACKENDS[store.backend]).write

    def write_wrongly(self, folder, rows):
        digests = write(self, folder, rows)
        flip_bit(next(path for path in folder.rglob("*") if path.name in ("packed", "tensors.pt")))
        return digests

    monkeypatch.setattr(type(BACKENDS[store.backend]), "write", write_wrongly)
    with pytest.raises(CheckpointError, match="SHA-256"):
        save_at(store, 30)
    assert sorted(os.listdir(store.folder)) == [first.name, second.name]


def test_what_cannot_be_saved_is_named_and_nothing_is_written(store):
    with pytest.raises(TypeError, match=r"^hooks\.mine\.cache: set"):
        store.save({"hooks": {"mine": {"cache": set()}}}, {"env_steps": 1})
    assert store.folders() == []


def test_it_is_due_once_per_interval_and_goes_on_after_a_resume(tmp_path):
    store = CheckpointStore(tmp_path, every={"env_steps": 100})
    due = [step for step in range(0, 350, 30) if store.due(Progress(env_steps=step))]
    assert due == [120, 210, 300]
    resumed = CheckpointStore(tmp_path, every={"env_steps": 100})
    resumed.load_state_dict(store.state_dict())
    assert not resumed.due(Progress(env_steps=390))
    assert resumed.due(Progress(env_steps=400))


def test_without_an_interval_it_is_never_due(tmp_path):
    store = CheckpointStore(tmp_path)
    assert not store.due(Progress(env_steps=10**9))
    store.load_state_dict(store.state_dict())


def test_an_interval_of_another_unit_starts_anew(tmp_path):
    store = CheckpointStore(tmp_path, every={"env_steps": 100})
    store.due(Progress(env_steps=1000))
    other = CheckpointStore(tmp_path, every={"updates": 100})
    other.load_state_dict(store.state_dict())
    assert other.due(Progress(updates=100))


def test_the_environment_chooses_the_backend_unless_told(tmp_path, monkeypatch):
    assert CheckpointStore(tmp_path).backend == "torchsnapshot"
    monkeypatch.setenv("CKPT_BACKEND", "torch")
    assert CheckpointStore(tmp_path).backend == "torch"
    assert CheckpointStore(tmp_path, backend="torchsnapshot").backend == "torchsnapshot"
    monkeypatch.setenv("CKPT_BACKEND", "pickle")
    with pytest.raises(CheckpointError, match=r"CKPT_BACKEND=pickle.*torchsnapshot or torch"):
        CheckpointStore(tmp_path)


def test_a_path_that_ends_in_pt_is_a_folder(tmp_path, backend):
    store = CheckpointStore(tmp_path / "agent.pt", backend=backend)
    save_at(store, 1)
    assert (tmp_path / "agent.pt" / "ckpt" / "step-1" / "manifest.json").is_file()


def test_other_conditions_at_loading_are_named(store, caplog):
    (folder,) = save_at(store, 1)
    reseal(folder, threads=64)
    store.load()
    assert f"torch threads 64 -> {torch.get_num_threads()}" in caplog.text
