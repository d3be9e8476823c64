import pytest
import torch
from tensordict import TensorDict

from runner.data.storage import TensorStorage

KEYS = ("observation", ("next", "reward"))


def batch(steps, num_envs=2, first=0):
    """Env ``n`` at time ``t`` observes ``[t, n]`` and is rewarded ``10 t + n``."""
    time = torch.arange(first, first + steps).float().expand(num_envs, steps)
    env = torch.arange(num_envs).float()[:, None].expand(num_envs, steps)
    fields = {"observation": torch.stack([time, env], -1), "unused": time, "next": {"reward": 10 * time + env}}
    return TensorDict(fields, batch_size=[num_envs, steps])


def filled(capacity, *steps, num_envs=2):
    storage, first = TensorStorage(capacity, KEYS), 0
    for number in steps:
        storage.extend(batch(number, num_envs, first))
        first += number
    return storage


def times(storage):
    return storage.fields["observation"][:, 0, 0].tolist()


def test_rows_are_kept_in_the_order_they_were_collected():
    storage = filled(8, 3)
    assert storage.fields["observation"][:3].tolist() == [[[t, 0], [t, 1]] for t in range(3)]
    assert storage.flat["next", "reward"][:6].tolist() == [0, 1, 10, 11, 20, 21]
    assert len(storage) == 6


def test_only_the_keys_asked_for_are_kept():
    assert set(filled(8, 3).fields) == set(KEYS)


def test_the_flat_view_is_no_copy():
    storage = filled(8, 3)
    storage.fields["observation"][2, 1] = 7
    assert storage.flat["observation"][5].tolist() == [7, 7]


def test_the_ring_overwrites_its_oldest_rows():
    storage = filled(8, 3, 3)  # 4 rows: 0 1 2 3, then 4 and 5 over 0 and 1
    assert times(storage) == [4, 5, 2, 3]
    assert storage.flat["next", "reward"].tolist() == [40, 41, 50, 51, 20, 21, 30, 31]
    assert (len(storage), storage.cursor) == (8, 2)


def test_the_ring_can_be_filled_exactly():
    storage = filled(8, 2, 2)
    assert (times(storage), storage.cursor) == ([0, 1, 2, 3], 0)
    storage.extend(batch(1, first=4))
    assert times(storage) == [4, 1, 2, 3]


def test_a_batch_as_large_as_the_ring_replaces_everything():
    assert times(filled(8, 1, 4)) == [4, 1, 2, 3]


def test_a_batch_larger_than_the_ring_is_refused():
    with pytest.raises(ValueError, match="is less than a batch of"):
        filled(8, 5)


def test_a_capacity_that_is_no_multiple_of_the_environments_is_refused():
    with pytest.raises(ValueError, match="capacity=8 is not a multiple of the 3 environments"):
        filled(8, 1, num_envs=3)


def test_what_is_stored_is_a_copy():
    storage, one = TensorStorage(8, KEYS), batch(2)
    storage.extend(one)
    one["observation"].fill_(9)
    assert times(storage)[:2] == [0, 1]


@pytest.mark.parametrize("steps", [(3,), (3, 3), (2, 2)])
def test_a_loaded_storage_goes_on_as_the_saved_one(steps):
    storage, other = filled(8, *steps), TensorStorage(8, KEYS)
    other.load_state_dict(storage.state_dict())
    for one in (storage, other):
        one.extend(batch(3, first=20))
    assert (len(other), other.cursor) == (len(storage), storage.cursor)
    for key in KEYS:
        assert torch.equal(other.fields[key], storage.fields[key])


def test_only_filled_rows_are_saved():
    assert len(filled(100, 3).state_dict()["fields"]["next.reward"]) == 3


def test_an_empty_storage_can_be_saved_and_loaded():
    other = TensorStorage(8, KEYS)
    other.load_state_dict(TensorStorage(8, KEYS).state_dict())
    assert len(other) == 0


def test_the_state_of_an_empty_storage_empties_one_that_is_filled():
    storage = filled(8, 3)
    storage.load_state_dict(TensorStorage(8, KEYS).state_dict())
    assert (len(storage), storage.cursor, storage.state_dict()["fields"]) == (0, 0, {})
    storage.extend(batch(2, num_envs=4))
    assert (len(storage), times(storage)) == (8, [0, 1])


def test_a_larger_capacity_takes_over_what_was_saved_oldest_first():
    storage, other = filled(8, 3, 3), TensorStorage(12, KEYS)
    other.load_state_dict(storage.state_dict())
    assert (times(other)[:4], len(other), other.cursor) == ([2, 3, 4, 5], 8, 4)
    other.extend(batch(3, first=6))
    assert times(other) == [8, 3, 4, 5, 6, 7]


def test_a_smaller_capacity_keeps_the_newest_of_what_was_saved_and_says_so(caplog):
    storage, other = filled(8, 3, 3), TensorStorage(4, KEYS)
    TensorStorage(8, KEYS).load_state_dict(storage.state_dict())
    assert caplog.messages == []
    other.load_state_dict(storage.state_dict())
    (told,) = caplog.messages
    assert told == "of the 8 transitions in the replay only the 4 newest are kept: source.capacity=4"
    assert (times(other), len(other)) == ([4, 5], 4)
    other.extend(batch(1, first=6))
    assert times(other) == [6, 5]
