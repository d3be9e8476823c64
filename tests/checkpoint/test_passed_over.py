"""What a load passes over, and what it never takes for the newest checkpoint."""

import errno
import os
from pathlib import Path

import pytest
import torch

from runner.checkpoint import manifest
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError


@pytest.fixture
def checkpoints(tmp_path):
    saved = CheckpointStore(tmp_path, backend="torch", keep=3)
    for step in (1, 2, 3):
        saved.save({"part": {"step": step, "row": torch.full((3,), float(step))}}, {"env_steps": step})
    return saved


def loaded_step(checkpoints):
    return checkpoints.load()[0]["part"]["step"]


@pytest.mark.parametrize("name", ["step-3.bak", "old-step-3", "step-3 (copy)", "STEP-3", "step-3.r0", "notes.txt"])
def test_a_name_that_no_checkpoint_has_is_told_of(checkpoints, name, caplog):
    os.rename(checkpoints.folder / "step-3", checkpoints.folder / name)
    assert loaded_step(checkpoints) == 2
    (record,) = caplog.records
    assert name in record.getMessage()
    assert record.getMessage() in checkpoints.rejected


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_something_else_in_place_of_their_folder_is_not_the_same_as_none(tmp_path, make):
    make(tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        CheckpointStore(tmp_path, backend="torch").folders()


def test_an_older_one_is_not_the_newest_because_its_manifest_could_not_be_read_once(checkpoints, monkeypatch):
    read, failed = manifest.read_small, []

    def fail_once(folder, name):
        if folder.name == "step-1" and not failed:
            failed.append(folder)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(folder, name)

    monkeypatch.setattr(manifest, "read_small", fail_once)
    assert loaded_step(checkpoints) == 3
    assert failed
    assert "step-1 is not used: manifest.json: could not be read at first" in checkpoints.rejected[0]


def test_the_order_goes_on_where_the_newest_manifest_cannot_be_read(checkpoints, monkeypatch):
    """A second run in the same folder begins at small steps: only the order tells which is newer."""
    read = manifest.read_small

    def fail(folder, name):
        if folder.name == "step-3":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(folder, name)

    monkeypatch.setattr(manifest, "read_small", fail)
    checkpoints.save({"part": {"step": 0}}, {"env_steps": 0})
    monkeypatch.undo()
    assert loaded_step(checkpoints) == 0
