import pytest
import torch
from tensordict import TensorDict

from runner.builders import make_replay_buffer
from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TD_ERROR,
)


def batch(steps, num_envs=2, first=0, ends=(), cuts=()):
    """Env ``n`` at time ``t``: observation ``100 n + t``, action ``t``, reward ``t``, next observation one higher.

    Episodes of all environments terminate after the steps ``ends`` and are truncated after the steps ``cuts``.
    """
    time = torch.arange(first, first + steps).expand(num_envs, steps)
    observation = (100 * torch.arange(num_envs)[:, None] + time).float().unsqueeze(-1)
    terminated = torch.isin(time, torch.tensor(ends, dtype=torch.int64))
    truncated = torch.isin(time, torch.tensor(cuts, dtype=torch.int64))
    following = {
        "observation": observation + 1,
        "reward": time.float(),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
    }
    return TensorDict({OBSERVATION: observation, ACTION: time, "next": following}, batch_size=[num_envs, steps])


def replay(capacity=40, batch_size=256, seed=0, **options):
    return make_replay_buffer(torch.Generator().manual_seed(seed), capacity=capacity, batch_size=batch_size, **options)


def filled(source, *steps, **options):
    first = 0
    for number in steps:
        source.extend(batch(number, first=first, **options))
        first += number
    return source


def by_observation(sub_batch):
    """What was sampled for each observation, as plain numbers."""
    keys = (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED)
    return {row[0]: row[1:] for row in zip(*(sub_batch[key].flatten().tolist() for key in keys), strict=True)}


def test_a_sub_batch_is_made_of_real_transitions():
    rows = by_observation(filled(replay(), 5, 5, ends=(3, 7)).sample())
    assert rows == {
        float(100 * env + t): (t, float(100 * env + t + 1), float(t), t in (3, 7))
        for env in range(2)
        for t in range(10)
    }


def test_rows_match_after_the_ring_has_come_round():
    rows = by_observation(filled(replay(capacity=10), 4, 4, 4).sample())  # 5 rows: steps 7 to 11 are left
    assert rows == {
        float(100 * env + t): (t, 100.0 * env + t + 1, float(t), False) for env in range(2) for t in range(7, 12)
    }


def test_unfilled_rows_are_never_sampled():
    source = filled(replay(capacity=1_000, batch_size=512), 3)
    seen = {observation for _ in range(20) for observation in source.sample()[OBSERVATION].flatten().tolist()}
    assert seen == {0, 1, 2, 100, 101, 102}


def test_transitions_of_all_environments_are_equally_likely():
    source = filled(replay(capacity=40, batch_size=20_000), 10)
    values, counts = source.sample()[OBSERVATION].flatten().unique(return_counts=True)
    chi_square = ((counts - 1_000) ** 2 / 1_000).sum()
    # 19 degrees of freedom: 99.9 % of chi-square values are below 43.8.
    assert (len(values), chi_square < 43.8) == (20, True)


def test_sampling_from_an_empty_buffer_says_what_to_do():
    with pytest.raises(RuntimeError, match="extend it before the first sample"):
        replay().sample()


def test_a_sub_batch_may_be_larger_than_what_is_stored():
    assert filled(replay(batch_size=256), 1).sample().shape == (256,)


def test_the_sub_batch_has_the_types_of_the_batch():
    sub_batch = filled(replay(), 5).sample()
    assert {key: sub_batch[key].dtype for key in (OBSERVATION, ACTION, NEXT_TERMINATED)} == {
        OBSERVATION: torch.float32,
        ACTION: torch.int64,
        NEXT_TERMINATED: torch.bool,
    }


def test_what_a_loss_writes_into_the_sub_batch_stays_out_of_the_buffer():
    source = filled(replay(), 5)
    sub_batch = source.sample()
    sub_batch[OBSERVATION].fill_(-1)
    sub_batch.set(TD_ERROR, torch.ones(256))
    assert source.sample()[OBSERVATION].min() >= 0


@pytest.mark.parametrize("steps", [(5,), (9, 9, 9)])
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_loaded_buffer_samples_what_the_saved_one_would(steps, n_step):
    one, other = filled(replay(n_step=n_step), *steps), replay(seed=1, n_step=n_step)
    one.sample()
    other.load_state_dict(one.state_dict())
    again = replay(seed=2, n_step=n_step)
    again.load_state_dict(other.state_dict())
    for _ in range(3):
        drawn = [source.sample().clone() for source in (one, other, again)]
        assert (drawn[0] == drawn[1]).all()
        assert (drawn[0] == drawn[2]).all()
        for source in (one, other, again):
            source.extend(batch(2, first=50))


def test_the_memory_is_what_the_full_storage_takes():
    source = filled(replay(capacity=40), 5)
    taken = sum(field.nbytes for field in source.storage.fields.values())
    # float32 observation, int64 action, float32 next observation and reward, one byte each for terminated and done
    assert source.memory_bytes(batch(5)) == taken == 40 * (4 + 8 + 4 + 4 + 1 + 1)


def test_the_source_says_how_many_updates_and_when_they_begin():
    source = replay(optim_steps=3, warmup=50)
    assert (source.optim_steps(), source.warmup) == (3, 50)


def n_step_rows(source):
    sub_batch = source.sample()
    keys = (OBSERVATION, NEXT_REWARD, NEXT_OBSERVATION, NEXT_STEPS, NEXT_TERMINATED)
    return {row[0]: row[1:] for row in zip(*(sub_batch[key].flatten().tolist() for key in keys), strict=True)}


def test_n_step_rewards_stop_at_the_end_of_the_episode_and_at_the_newest_row():
    source = filled(replay(batch_size=256, n_step=3, gamma=0.5), 6, num_envs=1, ends=(2,))
    assert n_step_rows(source) == {
        0: (0 + 0.5 * 1 + 0.25 * 2, 3, 3, True),
        1: (1 + 0.5 * 2, 3, 2, True),
        2: (2, 3, 1, True),
        3: (3 + 0.5 * 4 + 0.25 * 5, 6, 3, False),
        4: (4 + 0.5 * 5, 6, 2, False),
        5: (5, 6, 1, False),
    }


def test_truncation_ends_an_n_step_window_and_is_no_termination():
    source = filled(replay(batch_size=256, n_step=3, gamma=0.5), 4, num_envs=1, cuts=(1,))
    assert n_step_rows(source)[0] == (0 + 0.5 * 1, 2, 2, False)


def test_n_step_windows_cross_the_end_of_the_ring_but_not_the_newest_row():
    source = filled(replay(capacity=4, batch_size=256, n_step=2, gamma=1.0), 3, 3, num_envs=1)
    # The rows hold the steps 4 5 2 3: step 3 goes on with 4, and nothing follows 5.
    assert n_step_rows(source) == {
        2: (2 + 3, 4, 2, False),
        3: (3 + 4, 5, 2, False),
        4: (4 + 5, 6, 2, False),
        5: (5, 6, 1, False),
    }


def test_n_step_windows_stay_in_their_environment():
    rows = n_step_rows(filled(replay(batch_size=256, n_step=2, gamma=1.0), 3))
    assert {env: rows[100 * env][1] for env in range(2)} == {0: 2, 1: 102}
    assert rows[102][2] == 1


def test_episode_ends_are_kept_for_one_step_too_so_that_a_resumed_run_may_take_several():
    assert NEXT_DONE in replay().storage.keys
