"""Every sampler over every storage: saved, loaded, saved and loaded again, it goes on to the bit."""

import random

import pytest
import torch

from runner.builders import make_replay_buffer
from runner.checkpoint.store import CheckpointStore
from runner.spec import TD_ERROR
from tests.data.episodes import Environments

SAMPLERS = {
    "uniform": {},
    "prioritized": {"sampler": "prioritized"},
    "without_replacement": {"sampler": "without_replacement"},
    "slices": {"sampler": "slices", "slice_length": 2},
}
STORAGES = {"tensor": 60, "memmap": 6000}
"""With a capacity; files have pages, so that theirs is larger."""


def make(sampler, storage, folder, seed):
    return make_replay_buffer(
        torch.Generator().manual_seed(seed),
        capacity=STORAGES[storage],
        batch_size=16,
        n_step=2,
        storage=storage,
        run=folder,
        **SAMPLERS[sampler],
    )


def work(source, batches):
    """Take in batches, draw after each, and answer with errors; everything that was drawn."""
    drawn = []
    for one in batches:
        source.extend(one)
        for _ in range(2):
            sub_batch = source.sample()
            drawn.append(sub_batch.exclude(TD_ERROR).clone())
            sub_batch.set(TD_ERROR, sub_batch["observation"] % 7 + 0.1)
            source.update_priority(sub_batch)
    return drawn


@pytest.mark.parametrize("backend", ["torch", "torchsnapshot"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("more", [0, 2], ids=["columns", "trajectories"])
def test_a_source_that_is_saved_and_loaded_twice_goes_on_to_the_bit(tmp_path, backend, storage, sampler, more):
    environments, lengths = Environments(2, 0, more), random.Random(1)
    scale = STORAGES[storage] // 60
    stretches = [[environments.collect(lengths.randint(1, 12) * scale) for _ in range(3)] for _ in range(4)]
    one = make(sampler, storage, tmp_path / "one", 1)
    whole = [work(one, stretch) for stretch in stretches]
    (tmp_path / "other").mkdir()
    other = make(sampler, storage, tmp_path / "other", 1)
    assert same(work(other, stretches[0]), whole[0])
    for number, stretch in enumerate(stretches[1:], start=1):
        store = CheckpointStore(run=tmp_path / "other", backend=backend)
        store.save({"source": other.state_dict()}, {"env_steps": number}, {})
        other = make(sampler, storage, tmp_path / "other", 100 + number)
        state, _ = CheckpointStore(run=tmp_path / "other", backend=backend).load()
        other.load_state_dict(state["source"])
        assert same(work(other, stretch), whole[number])


def same(one, other):
    return all((mine == theirs).all() for mine, theirs in zip(one, other, strict=True))
