"""Families of environments: which task an episode is of follows from its seed, and from nothing else."""

import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv

from runner.envs.bandit import TwoArmedBandit
from runner.envs.tasks import PreviousStep, SampledTask
from runner.spec import ConfigError
from tests.collectors.parts import take
from tests.toys import collector, environment, same_tree

CHANCES = {"first": [0.0, 0.5], "second": [0.5, 1.0]}


def tasks_of(env, seeds):
    found = []
    for seed in seeds:
        env.reset(seed=seed)
        found.append((env.unwrapped.first, env.unwrapped.second))
    return found


def test_each_seed_has_a_task_of_its_own_within_the_ranges():
    found = tasks_of(SampledTask(TwoArmedBandit(), CHANCES), range(200))
    first, second = np.array(found).T
    assert len(set(found)) == 200
    assert 0 <= first.min() < 0.02 < 0.48 < first.max() <= 0.5 <= second.min() < 0.52 < 0.98 < second.max() <= 1
    assert abs(first.mean() - 0.25) < 0.03
    assert found[:5] == tasks_of(SampledTask(TwoArmedBandit(), CHANCES), range(5))


def test_a_task_does_not_follow_what_the_environment_draws_with_the_same_seed():
    env = SampledTask(TwoArmedBandit(), {"first": [0.0, 1.0]})
    drawn = []
    for seed in range(50):
        env.reset(seed=seed)
        drawn.append((env.unwrapped.first, env.unwrapped.np_random.random()))
    assert abs(np.corrcoef(np.array(drawn).T)[0, 1]) < 0.3


def test_a_bandit_pays_as_often_as_its_arms_say():
    env = TwoArmedBandit(pulls=4_000, first=0.2, second=0.7)
    env.reset(seed=0)
    first = [env.step(0)[1] for _ in range(2_000)]
    second = [env.step(1) for _ in range(2_000)]
    assert abs(np.mean(first) - 0.2) < 0.03
    assert abs(np.mean([one[1] for one in second]) - 0.7) < 0.03
    assert [one[2] for one in second] == [False] * 1_999 + [True]


def test_the_step_before_is_part_of_the_observation():
    env = PreviousStep(TwoArmedBandit(pulls=3, first=0.0, second=1.0))
    assert env.reset(seed=0)[0].tolist() == [0, 0, 0, 0]
    assert env.step(1)[0].tolist() == [0, 0, 1, 1]
    assert env.step(0)[0].tolist() == [0, 1, 0, 0]
    assert env.observation_space.shape == (4,)
    assert env.reset(seed=0)[0].tolist() == [0, 0, 0, 0]


def test_the_step_before_needs_discrete_actions():
    with pytest.raises(ValueError, match="needs vectors as observations and discrete actions"):
        PreviousStep(PendulumEnv())


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"gravty": [1, 2]}, "env.sample.gravty: a CartPoleEnv has no such attribute; did you mean gravity?"),
        ({"gravity": [12, 8]}, "env.sample.gravity: .12, 8. is no range from a lower to a higher value"),
    ],
)
def test_a_range_that_is_none_is_answered_in_one_line(ranges, words):
    with pytest.raises(ConfigError, match=words):
        SampledTask(CartPoleEnv(), ranges)


def gravities(sampled, num_envs=2):
    env = environment("CartPole-v1", num_envs, sample={"gravity": [5.0, 15.0]} if sampled else None)
    one = collector(env, 40)
    batches = take(one, 5)
    return one, batches, [inner.unwrapped.gravity for inner in env.envs]


def test_episodes_of_a_run_are_of_different_tasks_and_resume_as_they_were():
    one, _, sampled = gravities(True)
    assert sampled[0] != sampled[1] != 9.8
    assert gravities(False)[2] == [9.8, 9.8]
    again = collector(environment("CartPole-v1", 2, sample={"gravity": [5.0, 15.0]}), 40)
    again.load_state_dict(one.state_dict())
    assert same_tree([batch.to_dict() for batch in take(again, 3)], [batch.to_dict() for batch in take(one, 3)])
