"""Epochs over the collected batch, in minibatches."""

from itertools import chain

import pytest
import torch
from tensordict import TensorDict

from hooks.kl_stop import KLStop
from hooks.replay_buffer import ReplayBufferTrainer
from runner.data.rollout import LEFT_OUT, Rollout
from runner.minibatches import cyclic_minibatches
from runner.spec import ConfigError
from runner.trainer import Trainer
from tests.toys import Call, Counter, RewardModel, collector, environment, same_tree


def rollout(epochs=2, batch_size=None, sequence_length=None, seed=0):
    return Rollout(torch.Generator().manual_seed(seed), epochs, batch_size, sequence_length)


def batch(num_envs=3, steps=4, first=0):
    """Each step is numbered, ``first + 100 * environment + step``, as collectors lay it out: ``[T, N]`` in memory."""
    number = torch.arange(steps).unsqueeze(1) + 100 * torch.arange(num_envs) + first
    observation = number.unsqueeze(-1).float() * torch.tensor([1.0, -1.0])
    fields = {"number": number, "observation": observation, "next": {"observation": observation, "reward": number}}
    return TensorDict(fields, [steps, num_envs]).transpose(0, 1)


def steps_of(epoch):
    return list(chain.from_iterable(epoch))


def numbers(num_envs=3, steps=4, first=0):
    return sorted(100 * env + t + first for env in range(num_envs) for t in range(steps))


def epochs_of(one, given=None):
    """What ``number`` says, by epoch and sub-batch."""
    one.extend(given if given is not None else batch())
    count = one.optim_steps() // one.epochs
    return [[one.sample()["number"].tolist() for _ in range(count)] for _ in range(one.epochs)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 6, 12, None])
def test_each_epoch_visits_every_step_once(batch_size):
    one = rollout(3, batch_size)
    for epoch in epochs_of(one):
        assert [len(sub_batch) for sub_batch in epoch] == [batch_size or 12] * (12 // (batch_size or 12))
        assert sorted(steps_of(epoch)) == numbers()
    assert one.optim_steps() == 3 * (12 // (batch_size or 12))


@pytest.mark.parametrize(
    ("batch_size", "length"), [(1, None), (4, None), (12, None), (None, None), (4, 2), (12, 4), (None, 4)]
)
def test_minibatches_are_those_of_a_learner_that_is_used_by_itself(batch_size, length):
    one, given = rollout(3, batch_size, length, seed=5), batch()
    drawn = epochs_of(one, given)
    rows = given.transpose(0, 1).flatten() if length is None else given.unflatten(1, (-1, length)).flatten(0, 1)
    size = (batch_size or 12) // (length or 1)
    taken = cyclic_minibatches({"a": rows}, 3, size, {"a": torch.Generator().manual_seed(5)})
    assert [sub_batch for epoch in drawn for sub_batch in epoch] == [found["a"]["number"].tolist() for found in taken]


def test_each_epoch_has_an_order_of_its_own():
    orders = [steps_of(epoch) for epoch in epochs_of(rollout(4, 6))]
    assert len({tuple(order) for order in orders}) == 4
    assert all(order != sorted(order) for order in orders)


def test_every_order_is_as_likely_as_any_other():
    one = rollout(600, 1)
    counts = {}
    for epoch in epochs_of(one, batch(1, 3)):
        order = tuple(steps_of(epoch))
        counts[order] = counts.get(order, 0) + 1
    # 6 orders of 3 steps, 100 each: 5 degrees of freedom, more than 20.5 in one of a thousand.
    assert len(counts) == 6
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 20.5


def test_the_order_depends_on_the_seed_alone():
    assert epochs_of(rollout(2, 3, seed=1)) == epochs_of(rollout(2, 3, seed=1)) != epochs_of(rollout(2, 3, seed=2))


def test_all_entries_of_a_step_stay_together():
    one = rollout(1, 4)
    one.extend(batch())
    for _ in range(3):
        sub_batch = one.sample()
        assert sub_batch["observation"][:, 0].tolist() == sub_batch["number"].tolist()
        assert sub_batch["next", "reward"].tolist() == sub_batch["number"].tolist()


def test_what_no_loss_asks_for_is_left_out():
    one = rollout()
    given = batch().set(("collector", "traj_ids"), torch.zeros(3, 4)).set(("next", "episode_length"), torch.zeros(3, 4))
    one.extend(given)
    assert not set(LEFT_OUT) & set(one.sample().keys(include_nested=True))
    assert {"number", "observation", ("next", "reward")} <= set(one.sample().keys(include_nested=True))


def test_the_batch_itself_is_not_copied_and_memory_is_made_once():
    one, first, second = rollout(1, 4), batch(), batch(first=1000)
    one.extend(first)
    assert one._flat["number"].data_ptr() == first["number"].data_ptr()
    before = one.sample()["number"].data_ptr()
    one.extend(second)
    assert one.sample()["number"].data_ptr() == before


def test_batches_of_another_shape_are_taken():
    one = rollout(1, 4)
    assert sorted(steps_of(epochs_of(one)[0])) == numbers()
    assert sorted(steps_of(epochs_of(one, batch(2, 8))[0])) == numbers(2, 8)


def test_sequences_stay_whole():
    one = rollout(2, 6, sequence_length=3)
    for epoch in epochs_of(one, batch(2, 6)):
        rows = [row for sub_batch in epoch for row in sub_batch]
        assert [len(sub_batch) for sub_batch in epoch] == [2, 2]
        assert sorted(rows) == [[0, 1, 2], [3, 4, 5], [100, 101, 102], [103, 104, 105]]


def test_a_resumed_source_goes_on_with_the_orders():
    one, other = rollout(2, 3), rollout(2, 3, seed=5)
    epochs_of(one)
    other.load_state_dict(one.state_dict())
    assert epochs_of(one) == epochs_of(other)
    assert same_tree(one.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 5}, r"source\.batch_size=5 must be a divisor of collector\.frames_per_batch=12$"),
        ({"batch_size": 24}, r"source\.batch_size=24 must be a divisor of collector\.frames_per_batch=12$"),
        ({"sequence_length": 3}, r"source\.sequence_length=3 is no divisor of the 4 steps of an environment"),
        (
            {"batch_size": 6, "sequence_length": 4},
            r"batch_size=6 must be a divisor .* and a multiple of source\.sequence_length=4",
        ),
    ],
)
def test_what_does_not_divide_is_refused_in_one_line(settings, words):
    with pytest.raises(ValueError, match=words) as caught:
        rollout(**settings).extend(batch())
    assert "\n" not in str(caught.value)


def test_priorities_are_nobodys_business():
    one = rollout()
    one.extend(batch())
    one.update_priority(one.sample())


class Far(RewardModel):
    """Tells ``kl``, which in the third update of the second batch is too far."""

    def __init__(self, trainer_of, limit=0.03):
        super().__init__()
        self.trainer_of, self.limit = trainer_of, limit

    def forward(self, batch):
        progress = self.trainer_of().progress
        is_far = progress.batches == 2 and progress.updates == 8 + 2
        return {**super().forward(batch), "kl": torch.full(batch.shape, self.limit * (1.1 if is_far else 0.9))}


def running(loss, total_frames=36, source=None):
    env = environment(lambda: Counter(100), 1)
    source = source or rollout(2, 3)
    one = Trainer(
        total_frames=total_frames,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters()),
        source=source,
        collector=collector(env, 12),
    )
    ReplayBufferTrainer(source).register(one)
    KLStop(0.03).register(one)
    return one


def test_a_stop_in_the_middle_of_an_epoch_ends_with_the_batch():
    seen = []
    one = running(Far(lambda: one))
    Call(
        "post_loss", lambda sub_batch: seen.append((one.progress.batches, sub_batch["observation"][:, 0].tolist()))
    ).register(one)
    one.train()
    assert [batches for batches, _ in seen] == [1] * 8 + [2] * 3 + [3] * 8
    last = [steps for batches, steps in seen if batches == 3]
    for epoch in (last[:4], last[4:]):  # the third batch is steps 24 to 35, twice, from a new order on
        assert sorted(steps_of(epoch)) == list(range(24, 36))


def test_the_update_that_goes_too_far_is_still_made():
    one = running(Far(lambda: one))
    assert one.train().updates == 8 + 3 + 8


def test_a_stop_needs_a_loss_that_tells_how_far_it_went():
    with pytest.raises(ConfigError, match="kl_stop: this loss gives no kl of its samples"):
        running(RewardModel()).train()
