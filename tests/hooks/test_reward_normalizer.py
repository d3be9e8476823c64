import math
from fractions import Fraction

import pytest
import torch
from tensordict import TensorDict

from hooks.reward_normalizer import RewardNormalizer
from runner.builders import make_replay_buffer
from tests.toys import trainer


def rewards(values, **fields):
    reward = torch.as_tensor(values, dtype=torch.float64)
    return TensorDict({"next": {"reward": reward, **fields}}, batch_size=reward.shape)


def reference(batches, decay):
    """Mean and variance of all rewards, each batch weighing ``decay`` times as much as the next, without rounding."""
    decay, last = Fraction(decay), len(batches) - 1
    weighted = [(decay ** (last - index), Fraction(value)) for index, batch in enumerate(batches) for value in batch]
    weight = sum(one for one, _ in weighted)
    mean = sum(one * value for one, value in weighted) / weight
    return float(mean), float(sum(one * (value - mean) ** 2 for one, value in weighted) / (weight - 1))


def fed(batches, **options):
    hook = RewardNormalizer(**options)
    for batch in batches:
        hook.update_reward_stats(rewards(batch))
    return hook


def noisy(offset, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (1, 7, 40, 3)
    return [(offset + torch.randn(size, generator=generator, dtype=torch.float64)).tolist() for size in sizes]


@pytest.mark.pins("RewardNormalizer", excludes="variance as a difference of large sums")
@pytest.mark.parametrize("decay", [1.0, 0.999, 0.5, 0.0])
@pytest.mark.parametrize("offset", [0.0, -3.0, 1e9])
def test_mean_and_variance_are_those_of_exact_arithmetic(decay, offset):
    batches = noisy(offset)
    mean, variance = reference(batches, decay)
    hook = fed(batches, decay=decay)
    assert hook.mean == pytest.approx(mean, rel=1e-12, abs=1e-12)
    assert hook.variance == pytest.approx(variance, rel=1e-6)


def test_the_difference_of_sums_would_not_pass():
    batches = noisy(1e9)
    values = [value for batch in batches for value in batch]
    count, total, squares = len(values), sum(values), sum(value * value for value in values)
    by_sums = (squares - total**2 / count) / (count - 1)
    assert abs(by_sums / reference(batches, 1.0)[1] - 1) > 0.1


@pytest.mark.pins("RewardNormalizer")
def test_rewards_are_less_their_mean_by_their_deviation():
    hook = fed([[1.0, 2.0, 6.0]], scale=2.0, decay=1.0)  # mean 3, variance (4 + 1 + 9) / 2 = 7
    normalized = hook.normalize_reward(rewards([3.0, 10.0]))["next", "reward"]
    assert normalized.tolist() == pytest.approx([0.0, 2 * 7 / math.sqrt(7)])


@pytest.mark.pins("RewardNormalizer", excludes="normalizing before any statistics raises KeyError")
def test_before_any_reward_mean_and_deviation_are_0_and_1():
    assert RewardNormalizer(scale=3.0).normalize_reward(rewards([2.0]))["next", "reward"].tolist() == [6.0]
    assert fed([[]]).weight == 0


def test_rewards_that_are_all_the_same_are_divided_by_the_least_deviation():
    hook = fed([[5.0] * 8], eps=0.25)
    assert hook.normalize_reward(rewards([5.0, 6.0]))["next", "reward"].tolist() == [0.0, 2.0]


@pytest.mark.pins("RewardNormalizer", excludes="stored rewards are changed or the sub-batch is copied deeply")
def test_what_was_given_stays_as_it_is_and_all_else_is_shared():
    batch = rewards([3.0, 10.0], terminated=torch.tensor([False, True]))
    normalized = fed([[1.0, 2.0, 6.0]]).normalize_reward(batch)
    assert batch["next", "reward"].tolist() == [3.0, 10.0]
    assert normalized["next", "terminated"].data_ptr() == batch["next", "terminated"].data_ptr()


def test_a_replay_keeps_raw_rewards_and_updates_see_normalized_ones():
    source = make_replay_buffer(torch.Generator().manual_seed(0), capacity=100, batch_size=64)
    one, seen = trainer(4, source=source), []
    one.register_op("batch_process", lambda batch: source.extend(batch) or batch)
    one.register_op("process_optim_batch", source.sample)
    hook = RewardNormalizer(decay=1.0)
    hook.register(one)
    one.register_op("post_loss", lambda sub_batch: seen.extend(sub_batch["next", "reward"].tolist()))
    one.train()
    assert source.storage.flat["next", "reward"][:4].tolist() == [1, 2, 3, 4]  # mean 2.5, variance 5 / 3
    expected = {round((value - 2.5) / math.sqrt(5 / 3), 5) for value in (1, 2, 3, 4)}
    assert {round(value, 5) for value in seen} == expected


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_the_mean_is_taken_from_each_of_the_rewards_of_an_n_step_transition(gamma):
    hook = fed([[1.0, 2.0, 6.0]], decay=1.0, gamma=gamma)
    summed = [1.0, 1.0 + gamma * 2.0, 1.0 + gamma * 2.0 + gamma**2 * 6.0]
    normalized = hook.normalize_reward(rewards(summed, steps=torch.tensor([1, 2, 3])))["next", "reward"]
    each = [(value - 3.0) / math.sqrt(7) for value in (1.0, 2.0, 6.0)]
    by_hand = [sum(gamma**k * value for k, value in enumerate(each[:n])) for n in (1, 2, 3)]
    assert normalized.tolist() == pytest.approx(by_hand)


def test_invalid_steps_do_not_count():
    hook = RewardNormalizer()
    batch = rewards([1.0, 99.0, 3.0])
    batch["collector", "mask"] = torch.tensor([True, False, True])
    hook.update_reward_stats(batch)
    assert (hook.weight, hook.mean, hook.variance) == (2, 2.0, 2.0)


def test_statistics_go_on_where_they_were():
    batches = noisy(2.0)
    one, other = fed(batches[:2]), RewardNormalizer()
    other.load_state_dict(one.state_dict())
    for hook in (one, other):
        hook.update_reward_stats(rewards(batches[2]))
    assert (one.weight, one.mean, one.deviations) == (other.weight, other.mean, other.deviations)


def test_statistics_may_be_taken_now_and_then():
    one = trainer(16)
    hook = RewardNormalizer(every={"batches": 2}, decay=1.0)
    hook.register(one)
    one.train()
    assert hook.weight == 8
