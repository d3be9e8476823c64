import numpy as np
import pytest
import torch
from tensordict import TensorDict

from runner.builders import make_replay_buffer
from runner.spec import IMPORTANCE_WEIGHT, OBSERVATION, TD_ERROR, CheckpointError, HooklineError, Progress
from tests.data.test_replay import batch


def prioritized(capacity=40, batch_size=256, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return make_replay_buffer(generator, capacity=capacity, batch_size=batch_size, sampler="prioritized", **options)


def filled(source, *steps, **options):
    first = 0
    for number in steps:
        source.extend(batch(number, first=first, **options))
        first += number
    return source


def tell(source, error_of):
    """Answer one sub-batch with an error for each observation."""
    sub_batch = source.sample()
    errors = torch.tensor([error_of(one) for one in sub_batch[OBSERVATION].flatten().tolist()])
    sub_batch.set(TD_ERROR, errors)
    source.update_priority(sub_batch)
    return sub_batch


def frequencies(source, rounds):
    """How often each observation is drawn."""
    drawn = torch.cat([source.sample()[OBSERVATION].flatten().long() for _ in range(rounds)])
    return torch.bincount(drawn).double()


def test_transitions_are_drawn_in_exact_proportion_to_their_priority():
    """One sample at a time, so that each is independent of the others."""
    source = filled(prioritized(batch_size=2_000, alpha=0.6), 20, num_envs=1)
    tell(source, lambda observation: observation + 0.5)
    source.batch_size, source._sub_batch = 1, None
    counts = frequencies(source, 30_000)
    priority = (torch.arange(20).double() + 0.5 + 1e-6) ** 0.6
    expected = 30_000 * priority / priority.sum()
    # 19 degrees of freedom: 99.9 % of chi-square values are below 43.8, and 99.9 % above 5.4.
    assert 5.4 < ((counts - expected) ** 2 / expected).sum() < 43.8


def test_a_sub_batch_has_one_sample_of_each_equal_stretch_of_all_priorities():
    source = filled(prioritized(batch_size=100, alpha=1.0), 4, num_envs=1)
    tell(source, lambda observation: [1.0, 2.0, 3.0, 4.0][int(observation)])
    # The 100 stretches are a hundredth of 10 each: 10, 20, 30 and 40 of them, up to one at each border.
    assert (frequencies(source, 1) - torch.tensor([10.0, 20, 30, 40])).abs().max() <= 1


def test_new_transitions_get_the_largest_priority_so_far():
    source = filled(prioritized(alpha=1.0), 2, num_envs=1)
    assert source.sampler.tree.numbers[:3].tolist() == [1, 1, 0]
    tell(source, lambda observation: 7.0)
    tell(source, lambda observation: 3.0)
    source.extend(batch(1, first=2, num_envs=1))
    np.testing.assert_allclose(source.sampler.tree.numbers[:4], [3, 3, 7, 0], atol=1e-5)


def test_rows_that_are_overwritten_lose_their_priority():
    source = filled(prioritized(capacity=6, alpha=1.0), 3)
    tell(source, lambda observation: 1.0 + observation % 100)  # of steps 0, 1 and 2 in both environments: 1, 2, 3
    source.extend(batch(1, first=3))  # in place of step 0
    np.testing.assert_allclose(source.sampler.tree.numbers[:6], [3, 3, 2, 2, 3, 3], atol=1e-5)


def test_a_batch_that_goes_round_the_end_of_the_ring_is_new_on_both_sides():
    source = filled(prioritized(capacity=8, alpha=1.0), 3)
    tell(source, lambda observation: 0.5)
    source.extend(batch(2, first=3))  # rows 3 and 0
    np.testing.assert_allclose(source.sampler.tree.numbers[:8], [1, 1, 0.5, 0.5, 0.5, 0.5, 1, 1], atol=1e-5)


def test_weights_undo_the_preference_as_far_as_beta_says():
    source = filled(prioritized(batch_size=400, alpha=1.0, beta=0.5), 4, num_envs=1)
    tell(source, lambda observation: [1.0, 2.0, 4.0, 8.0][int(observation)])
    sub_batch = source.sample()
    weight = dict(zip(sub_batch[OBSERVATION].flatten().tolist(), sub_batch[IMPORTANCE_WEIGHT].tolist(), strict=True))
    # (N p_i) ** -0.5 over the largest one, which is that of the smallest priority: (1 / p_i) ** 0.5
    assert weight == pytest.approx({0: 1, 1: 2**-0.5, 2: 0.5, 3: 8**-0.5}, abs=1e-5)
    assert sub_batch[IMPORTANCE_WEIGHT].dtype == torch.float32


def test_with_full_correction_the_mean_is_that_of_uniform_sampling():
    source = filled(prioritized(batch_size=1_500, alpha=1.0, beta=1.0), 4, num_envs=1)
    tell(source, lambda observation: [1.0, 2.0, 4.0, 8.0][int(observation)])
    sub_batch = source.sample()
    weight, observation = sub_batch[IMPORTANCE_WEIGHT], sub_batch[OBSERVATION].flatten()
    assert float((weight * observation).sum() / weight.sum()) == pytest.approx(1.5, abs=0.02)


def test_beta_follows_the_env_steps_of_the_run():
    progress = Progress()
    source = filled(prioritized(beta=0.4, beta_end=0.8, progress=progress, total_env_steps=1000), 4)
    seen = []
    for progress.env_steps in (0, 500, 1000, 2000):
        seen.append(source.sampler.beta())
    assert seen == pytest.approx([0.4, 0.6, 0.8, 0.8])
    shorter = prioritized(beta=0.4, beta_env_steps=500, progress=Progress(env_steps=250), total_env_steps=1000)
    assert shorter.sampler.beta() == pytest.approx(0.7)


def test_alpha_zero_is_uniform():
    source = filled(prioritized(alpha=0.0), 5)
    tell(source, lambda observation: observation)
    assert set(source.sampler.tree.numbers[:10].tolist()) == {1}
    assert source.sample()[IMPORTANCE_WEIGHT].tolist() == [1] * 256


def test_a_sub_batch_without_errors_is_refused_and_old_ones_do_not_count():
    source = filled(prioritized(), 5)
    with pytest.raises(HooklineError, match="no td_error in the sub-batch after the loss"):
        source.update_priority(source.sample())
    tell(source, lambda observation: 1.0)
    with pytest.raises(HooklineError, match="no td_error"):
        source.update_priority(source.sample())


def test_errors_of_another_number_of_samples_are_refused():
    source = filled(prioritized(), 5)
    source.sample()
    with pytest.raises(ValueError, match="3 priorities for the 256 transitions"):
        source.update_priority(TensorDict({TD_ERROR: torch.ones(3)}, []))


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_errors_that_are_not_finite_leave_the_largest_priority(error):
    source = filled(prioritized(alpha=1.0), 3, num_envs=1)
    tell(source, lambda observation: 2.0)
    tell(source, lambda observation: error if observation == 1 else 0.5)
    np.testing.assert_allclose(source.sampler.tree.numbers[:4], [0.5, 2, 0.5, 0], atol=1e-5)


def test_negative_errors_count_by_their_size():
    source = filled(prioritized(alpha=1.0), 3, num_envs=1)
    tell(source, lambda observation: -3.0)
    np.testing.assert_allclose(source.sampler.tree.numbers[:3], 3, atol=1e-5)


def test_a_row_is_drawn_by_its_own_priority_whatever_follows_it():
    source = filled(prioritized(alpha=1.0, n_step=3, batch_size=64), 6, num_envs=1)
    tell(source, lambda observation: 1e6 if observation == 2 else 0.0)
    assert set(source.sample()[OBSERVATION].flatten().tolist()) == {2}


@pytest.mark.parametrize(("capacity", "kept"), [(8, 8), (4, 4), (12, 8)])
def test_priorities_stay_with_their_transitions_when_the_capacity_changes(capacity, kept):
    one = filled(prioritized(capacity=8, alpha=1.0), 5, 5, num_envs=1)  # steps 2 to 9, in another order
    tell(one, lambda observation: 1.0 + observation)
    other = prioritized(capacity=capacity, alpha=1.0)
    other.load_state_dict(one.state_dict())
    observations = other.storage.flat[OBSERVATION].flatten()[:kept]
    assert sorted(observations.tolist()) == list(range(10 - kept, 10))
    np.testing.assert_allclose(other.sampler.tree.numbers[:kept], observations + 1, atol=1e-4)
    assert other.sampler.tree.numbers[kept:].sum() == 0


def test_another_alpha_is_applied_to_the_errors_behind_the_priorities():
    one = filled(prioritized(alpha=0.5), 5, num_envs=1)
    tell(one, lambda observation: 4.0 + observation)
    other = prioritized(alpha=1.0)
    other.load_state_dict(one.state_dict())
    np.testing.assert_allclose(other.sampler.tree.numbers[:5], [4, 5, 6, 7, 8], atol=1e-4)
    assert other.sampler.largest == pytest.approx(8, abs=1e-4)


def test_what_another_sampler_collected_begins_with_equal_priorities():
    one = filled(make_replay_buffer(torch.Generator(), capacity=40), 5)
    other = prioritized()
    other.load_state_dict(one.state_dict())
    assert other.sampler.tree.numbers[:11].tolist() == [1] * 10 + [0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0, -1.0])
def test_priorities_of_a_checkpoint_that_cannot_be_are_refused(wrong):
    state = filled(prioritized(), 5).state_dict()
    state["sampler"]["oldest_first"][3] = wrong
    with pytest.raises(CheckpointError, match="its priorities are not those of 10 transitions"):
        prioritized().load_state_dict(state)


def test_fewer_priorities_than_transitions_are_refused():
    state = filled(prioritized(), 5).state_dict()
    state["sampler"]["oldest_first"] = state["sampler"]["oldest_first"][:3]
    with pytest.raises(CheckpointError, match="its priorities"):
        prioritized().load_state_dict(state)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 0.0])
def test_a_largest_priority_of_a_checkpoint_that_cannot_be_is_refused(wrong):
    state = filled(prioritized(), 5).state_dict()
    state["sampler"]["largest"] = wrong
    with pytest.raises(CheckpointError, match="its largest priority is"):
        prioritized().load_state_dict(state)
