"""Rows larger than the memory that a process may have, saved and restored in processes that have no more."""

import os
import subprocess
import sys

import pytest

from tests.checkpoint.limited import main

SIZES = [(96, 32), pytest.param(640, 100, marks=pytest.mark.slow)]
"""MiB of rows, and of memory that a process may take besides what its imports take."""


def run(work, folder, backend, mib, own_mib, *more):
    """The exit code of a forked process, or of a fresh one where there is much to do."""
    arguments = [work, str(folder), backend, str(mib), str(own_mib), *more]
    if mib > 100:
        command = [sys.executable, "-m", "tests.checkpoint.limited", *arguments]
        ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert ended.returncode in (0, 1, 2), ended.stderr
        return ended.returncode
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = main(*arguments)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.pins("Trainer", excludes="a tensor is loaded into memory before it is copied to where it is kept")
@pytest.mark.parametrize(("mib", "own_mib"), SIZES)
def test_a_tensor_is_restored_into_a_file_without_passing_through_memory(tmp_path, backend, mib, own_mib):
    assert run("save_tensor", tmp_path, backend, mib, own_mib) == 0
    assert run("restore_tensor", tmp_path, backend, mib, own_mib) == 0
    assert (tmp_path / "others").read_bytes() == (tmp_path / "rows").read_bytes()


@pytest.mark.parametrize(("mib", "own_mib"), SIZES)
def test_a_replay_buffer_larger_than_memory_is_saved_and_restored(tmp_path, backend, mib, own_mib):
    assert run("save_replay", tmp_path, backend, mib, own_mib, "memmap") == 0
    assert run("restore_replay", tmp_path, backend, mib, own_mib, "memmap") == 0


def test_rows_in_memory_do_not_fit_within_these_limits(tmp_path):
    assert run("save_replay", tmp_path, "torch", 96, 32, "tensor") == 1
    assert run("save_replay", tmp_path, "torch", 96, 512, "tensor") == 0
    assert run("restore_replay", tmp_path, "torch", 96, 512, "tensor") == 0
    assert run("restore_replay", tmp_path, "torch", 96, 32, "tensor") == 1


def test_rows_that_are_not_those_saved_are_noticed(tmp_path):
    assert run("save_replay", tmp_path, "torch", 8, 64, "memmap") == 0
    (tmp_path / "digests").write_text("others")
    assert run("restore_replay", tmp_path, "torch", 8, 64, "memmap") == 2
