import pytest
import torch
from tensordict import TensorDict

from runner.data.sampler import UniformSampler, WithoutReplacementSampler
from runner.data.storage import TensorStorage
from runner.spec import CheckpointError


def sampler(seed=0):
    return UniformSampler(torch.Generator().manual_seed(seed))


def test_every_index_is_equally_likely():
    counts = torch.bincount(sampler().sample(50, 100_000), minlength=50)
    chi_square = ((counts - 2_000) ** 2 / 2_000).sum()
    # 49 degrees of freedom: 99.9 % of chi-square values are below 85.4, and 99.9 % above 23.98.
    assert 23.98 < chi_square < 85.4
    assert counts.sum() == 100_000


def test_indices_are_below_the_size():
    assert set(sampler().sample(3, 200).tolist()) == {0, 1, 2}


def test_the_seed_decides_what_is_drawn():
    assert sampler(1).sample(1_000, 20).tolist() == sampler(1).sample(1_000, 20).tolist()
    assert sampler(1).sample(1_000, 20).tolist() != sampler(2).sample(1_000, 20).tolist()


def test_the_process_wide_generator_is_left_alone():
    before = torch.get_rng_state()
    sampler().sample(10, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_sampler_draws_what_the_saved_one_would():
    one, other = sampler(1), sampler(2)
    one.sample(100, 7)
    other.load_state_dict(one.state_dict())
    assert [one.sample(100, 7).tolist() for _ in range(3)] == [other.sample(100, 7).tolist() for _ in range(3)]


def test_the_batch_size_may_change():
    one = sampler()
    assert [len(one.sample(10, size)) for size in (3, 5, 3)] == [3, 5, 3]


def without_replacement(seed=0, capacity=100, held=10):
    storage = TensorStorage(capacity, ["observation"])
    storage.extend(TensorDict({"observation": torch.arange(float(held))[None]}, [1, held]))
    return WithoutReplacementSampler(storage, torch.Generator().manual_seed(seed))


def test_every_index_comes_once_in_each_epoch():
    one = without_replacement()
    drawn = torch.cat([one.sample(10, 4) for _ in range(5)]).tolist()  # two epochs, which meet in the third batch
    assert (sorted(drawn[:10]), sorted(drawn[10:])) == (list(range(10)), list(range(10)))
    assert drawn[:10] != drawn[10:]


def test_what_comes_in_during_an_epoch_joins_the_next_one():
    one = without_replacement()
    first = one.sample(6, 4).tolist() + one.sample(10, 2).tolist()
    assert sorted(first) == list(range(6))
    assert sorted(one.sample(10, 10).tolist()) == list(range(10))


def test_a_batch_may_be_larger_than_what_is_stored():
    drawn = without_replacement().sample(3, 8)
    assert torch.bincount(drawn, minlength=3).min() >= 2
    assert len(drawn) == 8


def test_an_epoch_that_was_saved_halfway_goes_on():
    one, other = without_replacement(1), without_replacement(2)
    seen = one.sample(10, 7).tolist()
    other.load_state_dict(one.state_dict())
    rest = [sampler.sample(10, 3).tolist() for sampler in (one, other)]
    assert rest[0] == rest[1]
    assert sorted(seen + rest[1]) == list(range(10))
    assert one.sample(10, 10).tolist() == other.sample(10, 10).tolist()


def test_another_capacity_begins_a_new_epoch():
    one, other = without_replacement(1), without_replacement(2, capacity=50)
    one.sample(10, 7)
    other.load_state_dict(one.state_dict())
    assert sorted(other.sample(10, 10).tolist()) == list(range(10))


def test_an_epoch_beyond_what_is_stored_is_refused():
    one, other = without_replacement(), without_replacement(held=5)
    one.sample(10, 2)
    with pytest.raises(CheckpointError, match="goes on beyond the 5 transitions"):
        other.load_state_dict(one.state_dict())
