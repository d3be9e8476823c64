"""The dataset that a run leaves: every transition once, whoever was killed, and opened by whoever learns from it."""

import signal
import time

import pytest
import torch

from runner.data.dataset import Dataset
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
