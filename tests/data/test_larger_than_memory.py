"""Buffers larger than the memory a process may have of its own, and what their checkpoints cost."""

import os
import resource
import time

import pytest
import torch
from tensordict import TensorDict

from runner.builders import make_replay_buffer
from runner.checkpoint.store import CheckpointStore

MIB = 2**20
OWN_BYTES = 96 * MIB
CAPACITY, WIDTH = 20_000, 4096
"""Two observations of 16 KiB each: 640 MiB in all."""


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


def fill_and_sample(storage, folder):
    """Within ``OWN_BYTES`` more than there is now (RLIMIT_DATA is ``ulimit -d``); memory of its own that it takes."""
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + OWN_BYTES,) * 2)
    before, steps = status("RssAnon"), 100
    source = make_replay_buffer(capacity=CAPACITY, batch_size=256, storage=storage, run=folder)
    observation, flag = torch.empty(1, steps, WIDTH), torch.zeros(1, steps, dtype=torch.bool)
    after = {"observation": observation, "reward": torch.ones(1, steps), "terminated": flag, "done": flag}
    batch = TensorDict({"observation": observation, "action": flag, "next": after}, batch_size=[1, steps])
    for number in range(3 * CAPACITY // steps // 2):  # one and a half times round
        observation.fill_(number)
        source.extend(batch)
    drawn = source.sample()["observation"]
    assert (drawn == drawn[:, :1]).all()
    assert drawn.min() >= CAPACITY // steps // 2
    return status("RssAnon") - before


def in_child(work, *arguments):
    """The exit code of a forked process: 0, or 1 where memory ran out, or 2 where it took too much."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = 0 if work(*arguments) < OWN_BYTES else 2
        except (MemoryError, RuntimeError):
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_rows_in_files_take_no_memory_of_the_process(tmp_path):
    assert in_child(fill_and_sample, "memmap", tmp_path) == 0


@pytest.mark.slow
def test_rows_in_memory_do(tmp_path):
    assert in_child(fill_and_sample, "tensor", tmp_path) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchsnapshot", "torch"])
def test_the_second_checkpoint_of_ten_million_rows_takes_a_twentieth_of_the_first(tmp_path, record_property, backend):
    rows, steps = 10_000_000, 1000
    source = make_replay_buffer(capacity=rows, storage="memmap", run=tmp_path)
    store, flag = CheckpointStore(tmp_path, backend=backend), torch.zeros(1, steps, dtype=torch.bool)
    observation, number = torch.randn(1, steps, 17), torch.randn(1, steps)
    after = {"observation": observation, "reward": number, "terminated": flag, "done": flag}
    batch = TensorDict({"observation": observation, "action": flag.long(), "next": after}, batch_size=[1, steps])

    def seconds_of_a_save(new_rows):
        for _ in range(new_rows // steps):
            source.extend(batch)
        began = time.perf_counter()
        store.save({"source": source.state_dict()}, {"env_steps": new_rows})
        return time.perf_counter() - began

    first, second = seconds_of_a_save(rows), seconds_of_a_save(5000)
    record_property("note", f"{backend}: 1e7 rows saved in {first:.2f} s, 5,000 more in {second:.3f} s")
    assert second <= first / 20
