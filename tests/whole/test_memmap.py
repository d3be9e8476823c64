"""Runs whose replay rows are in files: the same run as in memory, killed or not."""

import re
import signal
import time

import pytest

from tests.whole.children import fork
from tests.whole.runs import compose, differences, end_of

IN_MEMORY = ("source.n_step=3", "scheduler=constant", "total_frames=2500")
IN_FILES = (*IN_MEMORY, "source.storage=memmap")


@pytest.fixture(scope="module")
def in_files(tmp_path_factory):
    return whole(compose(*IN_FILES), tmp_path_factory.mktemp("in_files") / "run")


def whole(config, folder):
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return end_of(config, folder)


def begin(config, folder, until):
    """Begin a run; returns once the checkpoint of that step is there."""
    child = fork(config, folder)
    while not (folder / "ckpt" / f"step-{until}").exists():
        assert not child.has_ended(0.0005), child.output()
    return child


def without_files(end):
    """The same but for where the rows are kept."""
    source = {name: part for name, part in end["state"]["source"].items() if name != "storage"}
    return {**end, "state": {**end["state"], "source": source}, "files": sorted({*end["files"]} - {"replay"})}


def test_it_learns_the_same_from_the_same_rows(in_files, tmp_path):
    in_memory = whole(compose(*IN_MEMORY), tmp_path / "run")
    assert differences(without_files(in_files), without_files(in_memory)) == []


def test_killed_and_resumed_it_is_the_same_run(in_files, tmp_path):
    config, folder = compose(*IN_FILES), tmp_path / "run"
    child = begin(config, folder, until=1500)  # the ring of 1,000 rows has gone round
    time.sleep(0.02)
    assert child.kill() == -signal.SIGKILL
    assert differences(whole(config, folder), in_files) == []


def test_rows_changed_on_disk_throw_it_back_to_the_checkpoint_before(in_files, tmp_path):
    config, folder = compose(*IN_FILES), tmp_path / "run"
    child = begin(config, folder, until=1500)
    child.send(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    before = sorted(int(path.name.removeprefix("step-")) for path in (folder / "ckpt").iterdir())[-2]
    flip_last_bit(folder / "replay" / "observation.rows")  # of a row that only the newest checkpoint refers to
    assert differences(whole(config, folder), in_files) == []
    told = child.output()
    assert re.search(r"is not used: its replay rows cannot be used: replay/observation\.rows: .* SHA-256", told)
    assert f"going on from env step {before:,}" in told


def flip_last_bit(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_run_that_began_in_memory_goes_on_in_files(in_files, tmp_path):
    folder = tmp_path / "run"
    whole(compose(*IN_MEMORY, "total_frames=1500"), folder)
    assert differences(without_files(whole(compose(*IN_FILES), folder)), without_files(in_files)) == []


def test_a_run_in_files_does_not_go_on_in_memory(tmp_path):
    folder = tmp_path / "run"
    whole(compose(*IN_FILES, "total_frames=500"), folder)
    child = fork(compose(*IN_MEMORY), folder)
    assert child.wait() == 3
    assert "it goes on with source.storage=memmap only" in child.output()
