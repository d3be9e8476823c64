from functools import partial

import numpy as np
import pytest

from runner.seeding import env_seed
from runner.spec import (
    NEXT_EPISODE_LENGTH,
    NEXT_EPISODE_RETURN,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    NEXT_TRUNCATED,
    OBSERVATION,
)
from tests.toys import Counter, Made, collector, environment


def seeds_of_episodes(num_envs=1, seed=0, env_steps=12):
    """The seeds of the resets of each environment, without those of the probe."""
    made = Made()
    env = environment(made, num_envs, seed)
    before = [len(one.seeds) for one in made.envs]
    next(iter(collector(env, env_steps * num_envs)))
    return [one.seeds[start:] for one, start in zip(made.envs, before, strict=True)]


def test_every_episode_is_reset_with_its_own_seed():
    # Episodes of 5 steps: 12 steps see the beginnings of three.
    expected = [[env_seed(7, "env", index, episode) for episode in range(3)] for index in range(2)]
    assert seeds_of_episodes(num_envs=2, seed=7) == expected
    assert len({seed for seeds in expected for seed in seeds}) == 6


def test_seeds_follow_the_seed_of_the_run_and_nothing_else():
    assert seeds_of_episodes(seed=1) == seeds_of_episodes(seed=1) != seeds_of_episodes(seed=2)
    assert seeds_of_episodes(num_envs=2)[0] == seeds_of_episodes(num_envs=1)[0]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_termination_and_truncation_are_kept_apart(end):
    env = environment(partial(Counter, 3, end))
    batch = next(iter(collector(env, 6)))
    ends, other = (NEXT_TERMINATED, NEXT_TRUNCATED) if end == "terminated" else (NEXT_TRUNCATED, NEXT_TERMINATED)
    assert batch[ends].tolist() == [[False, False, True, False, False, True]]
    assert not batch[other].any()


def test_the_last_observation_of_an_episode_is_kept_and_the_next_row_begins_anew():
    batch = next(iter(collector(environment(partial(Counter, 3)), 6)))
    assert batch[OBSERVATION][0, :, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch[NEXT_OBSERVATION][0, :, 0].tolist() == [1, 2, 3, 1, 2, 3]


def test_a_batch_may_end_in_mid_episode():
    playing = iter(collector(environment(partial(Counter, 5)), 3))
    steps = [next(playing)[OBSERVATION][0, :, 0].tolist() for _ in range(3)]
    assert steps == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_environments_end_their_episodes_independently():
    lengths = iter([2, 3])
    batch = next(iter(collector(environment(lambda: Counter(next(lengths)), 2), 12)))
    assert batch[NEXT_REWARD].tolist() == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]


def test_returns_and_lengths_are_those_of_the_running_episode():
    batch = next(iter(collector(environment(partial(Counter, 3)), 5)))
    assert batch[NEXT_EPISODE_RETURN].tolist() == [[1, 1 + 2, 1 + 2 + 3, 1, 1 + 2]]
    assert batch[NEXT_EPISODE_LENGTH].tolist() == [[1, 2, 3, 1, 2]]


def test_float64_observations_are_stored_as_float32():
    batch = next(iter(collector(environment(Counter), 1)))
    assert batch[OBSERVATION][0, 0].numpy().tolist() == np.array([0, 0.1], np.float32).tolist()


def test_frame_skip_makes_one_env_step_of_several_frames():
    batch = next(iter(collector(environment(partial(Counter, 5), frame_skip=2), 3)))
    assert batch[NEXT_REWARD].tolist() == [[1 + 2, 3 + 4, 5]]
    assert batch[NEXT_OBSERVATION][0, :, 0].tolist() == [2, 4, 5]


def test_actions_reach_the_environment_they_were_chosen_for():
    made = Made()
    env = environment(made, 3)
    env.start()
    before = [len(one.actions) for one in made.envs]
    batch = next(iter(collector(env, 12, epsilon=1.0)))
    taken = [one.actions[start:] for one, start in zip(made.envs, before, strict=True)]
    assert batch["action"].tolist() == taken


def test_starting_again_does_not_reset():
    env = environment(Counter)
    one = collector(env, 3)
    next(iter(one))
    assert next(iter(one))[OBSERVATION][0, :, 0].tolist() == [3, 4, 0]


def test_closing_closes_every_environment():
    made = Made()
    closed = []
    env = environment(made, 2)
    for index, one in enumerate(made.envs):
        one.close = partial(closed.append, index)
    env.close()
    assert closed == [0, 1]
