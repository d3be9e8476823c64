import torch

from runner.data.sampler import UniformSampler


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
