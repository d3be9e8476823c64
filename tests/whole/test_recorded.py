"""The dataset that a run leaves: every transition once, whoever was killed, and opened by whoever learns from it."""

import random
import signal
import time

import pytest
import torch

from runner.data.dataset import Dataset
from runner.runs import read_run
from tests.whole.children import fork
from tests.whole.runs import compose, differences, end_of, state_of

RECORDED = ("hooks=[default,record_tensordict]", "scheduler=constant", "total_frames=2500")
REWARD = ("next", "reward")


def whole(config, folder):
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return end_of(config, folder)


def files_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "dataset").iterdir()}


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    folder = tmp_path_factory.mktemp("through") / "run"
    return folder, whole(compose(*RECORDED), folder)


def test_it_holds_every_transition_that_the_replay_has(through):
    folder, _ = through
    dataset, source = Dataset(folder / "dataset"), state_of(folder)["source"]["storage"]
    assert len(dataset) == 2500
    for key, name in (("observation", "observation"), ("action", "action"), (REWARD, "next.reward")):
        newest = dataset.tensor(key)[-1000:]
        ring = source["fields"][name].flatten(0, 1)
        assert torch.equal(newest, ring.roll(-source["cursor"], 0)), key
    assert dataset.spec["id"] == "CartPole-v1"
    assert dataset.spec["num_actions"] == 2


@pytest.mark.parametrize("after", [500, 1500])
def test_killed_and_resumed_a_run_leaves_the_same_dataset(through, tmp_path, after):
    config, folder = compose(*RECORDED), tmp_path / "run"
    child = fork(config, folder)
    while not (folder / "ckpt" / f"step-{after}").exists():
        assert not child.has_ended(0.0005), child.output()
    time.sleep(0.02)
    assert child.kill() == -signal.SIGKILL
    assert differences(whole(config, folder), through[1]) == []
    assert files_of(folder) == files_of(through[0])


def test_a_run_killed_before_its_first_checkpoint_begins_its_dataset_anew(through, tmp_path):
    config, folder = compose(*RECORDED), tmp_path / "run"
    child = fork(config, folder)
    while not (folder / "dataset" / "dataset.json").exists():
        assert not child.has_ended(0.0005), child.output()
    assert child.kill() == -signal.SIGKILL
    whole(config, folder)
    assert files_of(folder) == files_of(through[0])


def test_a_run_that_goes_on_for_longer_leaves_the_dataset_of_one_that_was_as_long(through, tmp_path):
    folder = tmp_path / "run"
    whole(compose(*RECORDED, "total_frames=1200"), folder)
    assert len(Dataset(folder / "dataset")) == 1200
    whole(compose(*RECORDED), folder)
    assert files_of(folder) == files_of(through[0])


def test_rows_changed_on_disk_throw_it_back_to_the_checkpoint_before(through, tmp_path):
    config, folder = compose(*RECORDED), tmp_path / "run"
    whole(compose(*RECORDED, "total_frames=1500"), folder)
    path = folder / "dataset" / "observation.rows"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1  # of a row that only the newest checkpoint refers to
    path.write_bytes(raw)
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    assert "the rows of its dataset cannot be used: dataset/observation.rows: its SHA-256" in child.output()
    assert files_of(folder) == files_of(through[0])


def newest(folder):
    """The env step of the newest checkpoint."""
    names = [path.name.removeprefix("step-") for path in (folder / "ckpt").glob("step-*")]
    return max([int(name) for name in names if name.isdigit()], default=0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchsnapshot", "torch"])
def test_killed_twelve_times_a_run_leaves_the_same_dataset_and_the_same_best(tmp_path, record_property, backend):
    typed = (*RECORDED, f"checkpoint.backend={backend}", "checkpoint.keep_best=1", "source.storage=memmap")
    config = compose(*typed, "total_frames=8000", "checkpoint.every.env_steps=200")
    whole(config, tmp_path / "through")
    folder, rng, steps = tmp_path / "run", random.Random(backend), [0]
    while len(steps) <= 12:
        child, until = fork(config, folder), steps[-1] + 200 * rng.randint(1, 3)
        while newest(folder) < until:
            assert not child.has_ended(0.001), child.output()
        time.sleep(rng.uniform(0, 0.1))
        assert child.kill() == -signal.SIGKILL
        steps.append(newest(folder))
    record_property("note", f"{backend}: killed with checkpoints of env steps {steps}")
    whole(config, folder)
    assert files_of(folder) == files_of(tmp_path / "through")
    best = [read_run(one)["best"] for one in (folder, tmp_path / "through")]
    assert best[0] == best[1]
    assert "checkpoint" in best[0]
