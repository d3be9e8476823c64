"""Checkpoints of several processes: whole or not there at all, and gone on from by as many as made them."""

import os
import signal
import time

import pytest
import torch

from runner.checkpoint.distributed import DistributedCheckpoint
from runner.checkpoint.manifest import DamagedError, verify
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError
from tests.checkpoint.parts import flip_bit
from tests.checkpoint.ranks import codes, ends, start, told
from tests.toys import same_tree


def killed_in(rank, at_step):
    """A store whose process ``rank`` is killed in the middle of writing its part at that step."""

    class Killed(DistributedCheckpoint):
        def _write_part(self, folder, content, deferred):
            if self.rank == rank and content.fields["counters"]["env_steps"] == at_step:
                folder.mkdir()
                (folder / "state.json").write_text('{"half":')
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._write_part(folder, content, deferred)

    return Killed


def failing_in(rank, at_step):
    """A store whose process ``rank`` finds no room for its part at that step."""

    class Full(DistributedCheckpoint):
        def _write_part(self, folder, content, deferred):
            if self.rank == rank and content.fields["counters"]["env_steps"] == at_step:
                content = content._replace(skeleton={"unheard of": object()})
            return super()._write_part(folder, content, deferred)

    return Full


def names(folder):
    return sorted(os.listdir(folder / "ckpt"))


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    folder = tmp_path_factory.mktemp("through")
    assert codes(start(folder, 2, "torch")) == [0, 0]
    return folder


def test_each_process_writes_its_part_under_one_manifest(through):
    assert names(through) == ["step-15", "step-20"]
    folder = through / "ckpt" / "step-20"
    manifest = verify(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "rank-0", "rank-1"]
    assert manifest["world_size"] == 2
    assert "learner" in manifest["parts"][0]
    assert "learner" not in manifest["parts"][1]
    assert "own" in manifest["parts"][1]
    assert {name.split("/")[0] for name in manifest["files"]} == {"rank-0", "rank-1"}


def test_the_processes_differ_in_what_is_their_own_and_in_nothing_else(through):
    one, other = ends(through)
    assert same_tree(one["learner"], other["learner"])
    assert not torch.equal(one["own"]["rows"], other["own"]["rows"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_in_a_save_leaves_the_checkpoint_before_and_they_go_on_bit_for_bit(
    through, tmp_path, backend, rank
):
    ended = codes(start(tmp_path, 2, backend, store=killed_in(rank, 10)))
    assert ended[rank] == -signal.SIGKILL
    assert ended[1 - rank] != 0
    assert [name for name in names(tmp_path) if ".tmp-" not in name] == ["step-5"]
    assert codes(start(tmp_path, 2, backend, resume=True)) == [0, 0], told(tmp_path, 0) + told(tmp_path, 1)
    assert same_tree(ends(tmp_path), ends(through))
    assert names(tmp_path) == ["step-15", "step-20"]  # and nothing half-written


@pytest.mark.parametrize("seconds", [0.02, 0.05, 0.1])
def test_killed_at_no_particular_instant_they_go_on_bit_for_bit(through, tmp_path, seconds):
    pids = start(tmp_path, 2, "torch")
    while not (tmp_path / "ckpt" / "step-5").exists():
        time.sleep(0.001)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    codes(pids)
    for name in names(tmp_path):
        assert ".tmp-" in name or verify(tmp_path / "ckpt" / name)
    assert codes(start(tmp_path, 2, "torch", resume=True)) == [0, 0]
    assert same_tree(ends(tmp_path), ends(through))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_save_that_fails_in_one_fails_in_all_and_the_run_goes_on(through, tmp_path, rank):
    assert codes(start(tmp_path, 2, "torch", store=failing_in(rank, 20))) == [0, 0]
    assert names(tmp_path) == ["step-10", "step-15"]
    found, expected = ends(tmp_path), ends(through)
    assert same_tree([one["own"] for one in found], [one["own"] for one in expected])


@pytest.mark.parametrize("world_size", [1, 3])
def test_another_number_of_processes_is_refused_in_one_line(through, world_size):
    assert codes(start(through, world_size, "torch", resume=True)) == [3] * world_size
    for rank in range(world_size):
        (line,) = [line for line in told(through, rank).splitlines() if line.startswith("no usable checkpoint")]
        assert f"it was made by 2 processes, and here are {world_size}" in line


def test_one_process_alone_does_not_take_it_for_its_own(through):
    with pytest.raises(CheckpointError, match="it was made by 2 processes, and here are 1"):
        CheckpointStore(through).load()


@pytest.mark.parametrize("damage", ["flip", "gone"])
def test_damage_to_the_part_of_one_throws_all_back_to_the_checkpoint_before(through, tmp_path, damage):
    assert codes(start(tmp_path, 2, "torch")) == [0, 0]
    path = tmp_path / "ckpt" / "step-20" / "rank-1" / "state.json"
    flip_bit(path) if damage == "flip" else path.unlink()
    with pytest.raises(DamagedError):
        verify(tmp_path / "ckpt" / "step-20")
    assert codes(start(tmp_path, 2, "torch", resume=True)) == [0, 0]
    assert same_tree(ends(tmp_path), ends(through))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_refuses_the_others_do_not_go_on_from_either(through, tmp_path, rank):
    class Refusing(DistributedCheckpoint):
        def _read(self, folder, manifest, into):
            if self.rank == rank and folder.name == "step-20":
                raise DamagedError("state.json", "cannot be used here")
            return super()._read(folder, manifest, into)

    assert codes(start(tmp_path, 2, "torch")) == [0, 0]
    for path in tmp_path.glob("end-*"):
        path.unlink()
    assert codes(start(tmp_path, 2, "torch", resume=True, store=Refusing)) == [0, 0]
    for number in (0, 1):
        assert f"step-20 is not used: process {rank}: state.json: cannot be used here" in told(tmp_path, number)
    assert same_tree(ends(tmp_path), ends(through))


def test_intervals_by_the_clock_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the clocks of several processes do not agree"):
        DistributedCheckpoint(tmp_path, {"seconds": 5})
