"""The checkpoints of the best evaluated weights stay, however old they get."""

import json
import os

import pytest
import torch

from runner.builders import make_replay_buffer
from runner.checkpoint.best import EVALUATED, GIVEN_UP, Best
from runner.checkpoint.store import CheckpointStore
from runner.spec import Progress
from tests.checkpoint.parts import flip_bit
from tests.data.test_saved_replay import batch

METRIC = "eval/return_mean"


def store_at(folder, **options):
    return CheckpointStore(folder, **{"backend": "torch", "keep": 2, "keep_best": 1, **options})


def reach(store, step, value, metric=METRIC, always=True):
    """Evaluate at ``step``, and save if that is due, or always; whether it was due."""
    is_due = store.due(Progress(env_steps=step), {metric: float(value), "other": 1.0})
    if is_due or always:
        store.save({"learner": {"w": torch.tensor(float(step))}, "checkpoint": store.state_dict()}, {"env_steps": step})
    return is_due


def names(store):
    return sorted(os.listdir(store.folder), key=lambda name: int(name.split("-")[1]))


def test_the_best_stays_besides_the_newest(tmp_path):
    store = store_at(tmp_path)
    for step, value in ((1, 5), (2, 9), (3, 7), (4, 8), (5, 6)):
        reach(store, step, value)
    assert names(store) == ["step-2", "step-4", "step-5"]
    best = store.find_best()
    assert (best.folder.name, best.value, best.env_steps) == ("step-2", 9.0, 2)


def test_only_a_new_best_value_makes_a_checkpoint_due(tmp_path):
    store = store_at(tmp_path)
    values = [3, 2, 3, 4, 4, 1, 5]
    assert [reach(store, step, value, always=False) for step, value in enumerate(values)] == [1, 0, 0, 1, 0, 0, 1]
    same = {METRIC: 9.0}
    assert store.due(Progress(env_steps=10), same)
    assert not store.due(Progress(env_steps=11), same)  # nothing was evaluated in between


@pytest.mark.parametrize(("mode", "kept"), [("max", ["step-2", "step-4"]), ("min", ["step-1", "step-3"])])
def test_several_of_the_best_stay_by_either_measure(tmp_path, mode, kept):
    store = store_at(tmp_path, keep=1, keep_best=2, best_mode=mode, best_metric="loss/q")
    for step, value in enumerate((5, 1, 9, 2, 8, 4, 4)):
        reach(store, step, value, "loss/q")
    assert names(store) == [*kept, "step-6"]


def test_values_that_are_not_finite_are_no_best(tmp_path):
    store = store_at(tmp_path)
    assert [reach(store, step, value) for step, value in ((1, float("nan")), (2, float("inf")), (3, -1))] == [0, 0, 1]
    assert store.find_best().value == -1


def test_what_is_best_survives_a_kill(tmp_path):
    reach(store_at(tmp_path), 1, 9)
    store = store_at(tmp_path)  # a new process
    store.load()
    for step, value in ((2, 8), (3, 7), (4, 8)):
        assert not reach(store, step, value)
    assert names(store) == ["step-1", "step-3", "step-4"]
    assert store.find_best().value == 9


def test_a_checkpoint_saved_again_after_a_resume_keeps_its_value(tmp_path):
    reach(store_at(tmp_path), 1, 9)
    store = store_at(tmp_path)
    state, _ = store.load()
    store.load_state_dict(state["checkpoint"])
    store.save({"learner": {"w": torch.tensor(2.0)}, "checkpoint": store.state_dict()}, {"env_steps": 1})
    manifests = [json.loads((store.folder / name / "manifest.json").read_text()) for name in os.listdir(store.folder)]
    assert [one["extra"]["evaluated"] for one in manifests] == [{METRIC: 9.0}] * 2


def resumed(folder, **options):
    store = store_at(folder)
    state, _ = store.load(**options)
    store.load_state_dict(state["checkpoint"])
    return store


def best_of(store):
    best = store.find_best()
    return best.value, best.env_steps


def test_a_future_that_was_given_up_has_no_best(tmp_path):
    first = store_at(tmp_path)
    for step, value in ((100, 1.5), (200, 9.5)):
        reach(first, step, value)
    back = resumed(tmp_path, take="step-100")
    assert best_of(back) == (1.5, 100)
    assert reach(back, 200, 2.5)
    assert best_of(back) == best_of(store_at(tmp_path)) == (2.5, 200)  # whoever looks, with nothing loaded
    again = resumed(tmp_path)  # a kill, and the newest
    assert not reach(again, 300, 2.0)
    assert best_of(again) == best_of(store_at(tmp_path)) == (2.5, 200)
    assert reach(again, 400, 2.6)
    assert best_of(again) == (2.6, 400)


def test_a_future_that_was_given_up_can_be_gone_back_to(tmp_path):
    first = store_at(tmp_path, keep=9)
    for step, value in ((100, 1.5), (200, 9.5)):
        reach(first, step, value)
    back = store_at(tmp_path, keep=9)
    back.load(take="step-100")
    reach(back, 300, 99)
    other = resumed(tmp_path, take="step-200")
    assert best_of(other) == (9.5, 200)
    reach(other, 400, 3)
    assert best_of(other) == best_of(store_at(tmp_path)) == (9.5, 200)


def test_what_a_made_up_manifest_says_of_futures_is_not_believed_blindly():
    for said in (None, 7, "x", [7], [[1]], [["a", "b"]], [[1.0, 2.0]], [{}], [[None, 2]]):
        manifest = {"sequence": 1, "counters": {"env_steps": 3}, "extra": {EVALUATED: {METRIC: 1.0}, GIVEN_UP: said}}
        assert len(Best(1, METRIC, "max").rank([(None, manifest)])) == 1


def test_a_damaged_best_gives_way_to_the_next_one(tmp_path):
    reach(store_at(tmp_path), 1, 9)
    flip_bit(tmp_path / "ckpt" / "step-1" / "state.json")
    store = store_at(tmp_path)
    for step, value in ((2, 5), (3, 4), (4, 3), (5, 2)):
        reach(store, step, value)
    assert names(store) == ["step-2", "step-4", "step-5"]


def test_without_keep_best_the_newest_alone_stay_and_nothing_is_noted(tmp_path):
    store = store_at(tmp_path, keep_best=0)
    assert not any(reach(store, step, value) for step, value in ((1, 9), (2, 8), (3, 7)))
    assert names(store) == ["step-2", "step-3"]
    assert "evaluated" not in json.loads((store.folder / "step-3" / "manifest.json").read_text())["extra"]
    assert store.state_dict() == {}


def test_one_checkpoint_can_be_taken_by_its_name(tmp_path):
    store = store_at(tmp_path)
    for step, value in ((1, 9), (2, 8), (3, 7)):
        reach(store, step, value)
    state, manifest = store_at(tmp_path).load(take="step-1")
    assert (float(state["learner"]["w"]), manifest["counters"]["env_steps"]) == (1, 1)
    flip_bit(store.folder / "step-1" / "state.json")
    with pytest.raises(Exception, match=r"step-1 is not used: state\.json"):
        store_at(tmp_path).load(take="step-1")


def test_replay_rows_of_the_best_stay_in_their_files_and_those_in_between_go(tmp_path, monkeypatch):
    monkeypatch.setattr("runner.data.journal.BLOCK_BYTES", 4096)
    store = store_at(tmp_path)
    source = make_replay_buffer(capacity=20, storage="memmap", run=tmp_path)

    def blocks():
        return sum(path.stat().st_blocks * 512 for path in (tmp_path / "replay").iterdir())

    used = []
    for step in range(40):
        source.extend(batch(step * 5, 2, 5))
        store.due(Progress(env_steps=step), {METRIC: 9.0 if step == 3 else float(step) / 100})
        store.save({"source": source.state_dict()}, {"env_steps": step})
        used.append(blocks())
    state, _ = store_at(tmp_path).load(take="step-3")
    rows = {name: entry["blocks"] for name, entry in state["source"]["storage"]["journal"].items()}
    assert rows
    assert max(used[20:]) <= max(used[8:20]) + 3 * 4096  # no more, however far apart they get
    other = make_replay_buffer(capacity=20, storage="memmap", run=tmp_path)
    other.load_state_dict(state["source"])
    seen = other.storage.flat["observation"][:, 0].reshape(10, 2)[:, 0]
    assert sorted(seen.tolist()) == list(range(10, 20))
