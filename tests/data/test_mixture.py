import pytest
import torch

from runner.builders import make_mixture, make_replay_buffer
from runner.data.mixture import shares
from runner.spec import IMPORTANCE_WEIGHT, NEXT_STEPS, OBSERVATION, TD_ERROR, CheckpointError, HooklineError
from tests.data.test_replay import batch


class Fixed:
    """A source with transitions of its own, whose observations are negative; it takes no others."""

    is_fixed = True

    def __init__(self, **options):
        self.inner = make_replay_buffer(torch.Generator().manual_seed(5), capacity=10, **options)
        one = batch(5)
        one[OBSERVATION] = -1 - one[OBSERVATION]
        self.inner.extend(one)

    @property
    def batch_size(self):
        return self.inner.batch_size

    @batch_size.setter
    def batch_size(self, size):
        self.inner.batch_size = size

    def extend(self, _):
        raise AssertionError("it takes nothing")

    def __getattr__(self, name):
        return getattr(self.inner, name)


def replay(seed=0, capacity=40, **options):
    return make_replay_buffer(torch.Generator().manual_seed(seed), capacity=capacity, **options)


def mixture(sources=None, batch_size=64, fractions=None, **options):
    sources = sources or {"all": replay(0), "newest": replay(1, capacity=4)}
    fractions = fractions or dict.fromkeys(sources, 1 / len(sources))
    return make_mixture(sources, fractions, batch_size=batch_size, **options)


def filled(source, *steps):
    first = 0
    for number in steps:
        source.extend(batch(number, first=first))
        first += number
    return source


def test_each_source_gives_its_part_in_their_order():
    source = filled(mixture(fractions={"all": 0.75, "newest": 0.25}), *[2] * 5)
    observation = source.sample()[OBSERVATION].flatten()
    assert set((observation[:48] % 100).tolist()) == set(range(10))
    assert set((observation[48:] % 100).tolist()) == {8, 9}  # two rows of two environments


def test_batches_go_to_those_sources_that_take_them():
    source = filled(mixture({"ours": replay(), "prior": Fixed()}), 5, 5)
    observation = source.sample()[OBSERVATION].flatten()
    assert observation[:32].min() >= 0
    assert observation[32:].max() < 0
    assert (len(source.sources["ours"].storage), len(source.sources["prior"].storage)) == (20, 10)


def test_priorities_go_back_to_the_source_they_are_of():
    parts = {
        "one": replay(0, sampler="prioritized", alpha=1.0),
        "even": replay(1),
        "other": replay(2, sampler="prioritized", alpha=1.0),
    }
    source = filled(mixture(parts, batch_size=300), 2)
    assert source.needs == (TD_ERROR,)
    sub_batch = source.sample()
    observation = sub_batch[OBSERVATION].flatten()
    factor = torch.tensor([1.0] * 100 + [float("nan")] * 100 + [10.0] * 100)
    sub_batch.set(TD_ERROR, (1 + observation) * factor)
    source.update_priority(sub_batch)
    for name, times in (("one", 1), ("other", 10)):
        numbers = torch.from_numpy(source.sources[name].sampler.tree.numbers[:4])
        torch.testing.assert_close(numbers, times * torch.tensor([1.0, 101, 2, 102]).double(), atol=1e-4, rtol=1e-6)


def test_errors_of_the_last_update_do_not_count():
    source = filled(mixture({"one": replay(sampler="prioritized")}), 5)
    sub_batch = source.sample()
    sub_batch.set(TD_ERROR, torch.ones(64))
    source.update_priority(sub_batch)
    with pytest.raises(HooklineError, match="no td_error"):
        source.update_priority(source.sample())


def test_a_source_without_weights_or_steps_counts_as_one_each():
    parts = {"one": replay(0, sampler="prioritized", beta=1.0), "other": replay(1, n_step=3)}
    source = filled(mixture(parts), 9)
    for _ in range(2):
        sub_batch = source.sample()
        sub_batch.set(TD_ERROR, torch.linspace(0.1, 1, 64))
        source.update_priority(sub_batch)
    assert sub_batch[IMPORTANCE_WEIGHT][:32].unique().numel() > 3
    assert sub_batch[IMPORTANCE_WEIGHT][32:].tolist() == [1] * 32
    assert sub_batch[NEXT_STEPS][:32].tolist() == [1] * 32
    assert set(sub_batch[NEXT_STEPS][32:].tolist()) == {1, 2, 3}


def test_a_loaded_mixture_samples_what_the_saved_one_would():
    def make(seed):
        return mixture({"one": replay(seed, sampler="prioritized"), "other": replay(seed + 1, capacity=8)})

    one, other = filled(make(0), 3, 3), make(7)
    one.sample()
    other.load_state_dict(one.state_dict())
    for _ in range(2):
        assert (one.sample() == other.sample()).all()
        for source in (one, other):
            source.extend(batch(2, first=50))


def test_a_state_without_one_of_the_sources_is_refused():
    with pytest.raises(CheckpointError, match="no source 'newest'"):
        mixture().load_state_dict({"all": replay().state_dict()})


def test_shares_add_up_and_are_as_near_to_the_fractions_as_can_be():
    assert shares({"a": 0, "b": 0}, {"a": 0.5, "b": 0.5}, 64) == {"a": 32, "b": 32}
    assert shares({"a": 0, "b": 0, "c": 0}, {"a": 0.1, "b": 0.2, "c": 0.7}, 10) == {"a": 1, "b": 2, "c": 7}
    # 3.33 each: the first one of those that are equally far gets what is left
    assert shares({"a": 0, "b": 0, "c": 0}, dict.fromkeys("abc", 1 / 3), 10) == {"a": 4, "b": 3, "c": 3}
    assert shares({"a": 0, "b": 0}, {"a": 0.29, "b": 0.71}, 10) == {"a": 3, "b": 7}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fractions": {"all": 0.5, "newest": 0.6}}, "add up to 1.1, and not to 1"),
        ({"fractions": {"all": 1.0}}, "source.fractions has all; the sources are all, newest"),
        ({"fractions": {"all": 0.999, "newest": 0.001}}, "source.fractions.newest=0.001 of 64 samples are none"),
        ({"sources": {"s": replay(sampler="slices", slice_length=4)}}, "source.sources.s draws slices"),
        (
            {"sources": {name: replay(storage="memmap", run="/nowhere") for name in "ab"}},
            "a and b would keep their rows in the same files",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        mixture(**options)


def test_a_capacity_that_is_too_small_is_refused_by_name():
    with pytest.raises(ValueError, match=r"source\.sources\.newest: source.capacity=4 is less than a batch of 6"):
        mixture().check(2, 3)


def test_the_memory_is_that_of_all_sources():
    source = mixture()
    assert source.memory_bytes(batch(5)) == sum(one.memory_bytes(batch(5)) for one in source.sources.values())
