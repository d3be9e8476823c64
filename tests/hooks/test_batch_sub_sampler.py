from collections import Counter

import pytest
import torch
from tensordict import TensorDict

from hooks.batch_sub_sampler import BatchSubSampler
from runner.builders import make_replay_buffer
from runner.seeding import Streams
from runner.spec import ConfigError
from tests.toys import collector, same_tree, trainer


def numbered(rows=2, steps=5, **fields):
    """A batch ``[N, T]`` whose ``place`` counts its steps row by row."""
    return TensorDict({"place": torch.arange(rows * steps).reshape(rows, steps), **fields}, batch_size=[rows, steps])


def drawn(sampler, batch, times=400):
    return torch.cat([sampler(batch)["place"] for _ in range(times)])


def mask(*rows):
    return {"collector": {"mask": torch.tensor(rows, dtype=torch.bool)}}


@pytest.mark.pins("BatchSubSampler", excludes="the last step of a trajectory is never sampled")
def test_every_stretch_is_drawn_up_to_the_last_step():
    stretches = Counter(map(tuple, drawn(BatchSubSampler(3, 3), numbered(), 2_000).tolist()))
    # Rows of 5 steps have 3 stretches of 3 each.
    assert set(stretches) == {(start, start + 1, start + 2) for start in (0, 1, 2, 5, 6, 7)}
    expected = 2_000 / 6
    assert sum((count - expected) ** 2 / expected for count in stretches.values()) < 20.5  # chi square, 5 df, p = 0.001


@pytest.mark.pins("BatchSubSampler")
def test_every_single_step_is_drawn_and_none_twice():
    sampler = BatchSubSampler(4)
    assert set(drawn(sampler, numbered()).tolist()) == set(range(10))
    assert all(len(set(sampler(numbered())["place"].tolist())) == 4 for _ in range(50))
    assert sorted(BatchSubSampler(10)(numbered())["place"].tolist()) == list(range(10))


@pytest.mark.pins("BatchSubSampler")
@pytest.mark.parametrize(
    ("batch_size", "length", "shape"), [(7, 3, (2, 3)), (5, 5, (1, 5)), (4, 1, (4, 1)), (4, -1, (4,))]
)
def test_an_update_sees_batch_size_steps(batch_size, length, shape):
    assert BatchSubSampler(batch_size, length)(numbered()).shape == shape


def test_a_stretch_ends_where_its_episode_does():
    done = torch.tensor([[0, 1, 0, 0, 0]], dtype=torch.bool)
    found = set(map(tuple, drawn(BatchSubSampler(2, 2), numbered(1, next={"done": done})).tolist()))
    assert found == {(0, 1), (2, 3), (3, 4)}  # and not (1, 2)


def test_invalid_steps_are_never_drawn():
    batch = numbered(2, 4, **mask([1, 1, 0, 0], [1, 1, 1, 0]))
    assert set(drawn(BatchSubSampler(2), batch).tolist()) == {0, 1, 4, 5, 6}
    assert set(map(tuple, drawn(BatchSubSampler(2, 2), batch).tolist())) == {(0, 1), (4, 5), (5, 6)}


def test_shorter_stretches_will_do_if_that_is_allowed():
    batch = numbered(2, 4, **mask([1, 1, 0, 0], [1, 0, 0, 0]))
    assert drawn(BatchSubSampler(6, 3, min_sub_traj_len=1), batch, 2).unique(dim=0).tolist() == [[0, 1]]
    with pytest.raises(ConfigError, match="no 3 steps of one trajectory"):
        BatchSubSampler(6, 3)(batch)


@pytest.mark.parametrize(
    ("given", "words"), [((4, 5), "must hold"), ((4, 2, 3), "must hold"), ((4, -1, 1), "must hold")]
)
def test_lengths_that_do_not_fit_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        BatchSubSampler(*given)


def test_more_steps_than_there_are_and_stretches_of_no_time_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="no 11 of 10 collected steps"):
        BatchSubSampler(11)(numbered())
    with pytest.raises(ConfigError, match=r"batches \[N, T\]; this one is \[10\]"):
        BatchSubSampler(4, 2)(numbered().reshape(-1))


def test_more_steps_than_the_source_samples_are_refused_at_registration():
    one = trainer(4, source=make_replay_buffer(capacity=100, batch_size=16))
    with pytest.raises(ValueError, match=r"batch_size=17 is more than source\.batch_size=16"):
        BatchSubSampler(17).register(one)
    BatchSubSampler(16).register(one)


def test_a_source_that_learns_from_all_it_sampled_is_refused_at_registration():
    one = trainer(4, source=make_replay_buffer(capacity=100, batch_size=16, sampler="prioritized"))
    with pytest.raises(ConfigError, match=r"set source\.batch_size instead"):
        BatchSubSampler(8).register(one)


def test_its_draws_are_its_own_stream_and_go_on_when_resumed():
    one, again, other = (BatchSubSampler(3, streams=Streams(seed)) for seed in (0, 0, 1))
    first = drawn(one, numbered(), 5)
    assert torch.equal(drawn(again, numbered(), 5), first)
    assert not torch.equal(drawn(other, numbered(), 5), first)
    other.load_state_dict(one.state_dict())
    assert torch.equal(drawn(other, numbered(), 5), drawn(one, numbered(), 5))


def test_each_update_of_a_batch_draws_anew():
    one, seen = trainer(4, optim_steps_per_batch=20, collector=collector()), []
    BatchSubSampler(2, every={"updates": 1}).register(one)
    one.register_op("post_loss", lambda sub_batch: seen.append(sub_batch["observation"][:, 0].tolist()))
    one.train()
    assert all(len(places) == 2 for places in seen)
    assert len(set(map(tuple, seen))) > 5
    assert same_tree(sorted({place for places in seen for place in places}), [0, 1, 2, 3])
