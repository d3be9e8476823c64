"""Which checkpoints a store deletes when it has written another."""

import os

import pytest
import torch

from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError


def save_at(store, *steps):
    for step in steps:
        store.save({"learner": {"step": torch.tensor(step)}}, {"env_steps": step})


def refuse(*steps):
    def accept(state):
        if int(state["learner"]["step"]) in steps:
            raise CheckpointError("its replay rows cannot be used")

    return accept


def test_a_checkpoint_that_the_run_refused_does_not_count_among_those_kept(tmp_path):
    save_at(CheckpointStore(tmp_path, backend="torch"), 10, 20)
    store = CheckpointStore(tmp_path, backend="torch")
    assert store.load(accept=refuse(20))[1]["counters"]["env_steps"] == 10
    save_at(store, 30)
    assert sorted(os.listdir(store.folder)) == ["step-10", "step-20", "step-30"]
    save_at(store, 40)
    assert sorted(os.listdir(store.folder)) == ["step-30", "step-40"]


def test_a_checkpoint_that_is_accepted_after_all_counts_like_any_other(tmp_path):
    store = CheckpointStore(tmp_path, backend="torch")
    save_at(store, 10, 20)
    with pytest.raises(CheckpointError):
        store.load(accept=refuse(10, 20))
    store.load()
    save_at(store, 30)
    assert sorted(os.listdir(store.folder)) == ["step-20", "step-30"]


def test_one_damage_more_to_the_newest_leaves_the_one_that_the_run_went_on_from(tmp_path):
    save_at(CheckpointStore(tmp_path, backend="torch"), 100, 200)
    store = CheckpointStore(tmp_path, backend="torch")
    store.load(accept=refuse(200))
    save_at(store, 250)
    path = store.folder / "step-250" / "state.json"
    path.write_bytes(path.read_bytes()[:-1])
    state, _ = CheckpointStore(tmp_path, backend="torch").load(accept=refuse(200))
    assert int(state["learner"]["step"]) == 100
