from functools import partial

import numpy as np
import pytest
import torch

from runner import evaluation
from runner.builders import make_evaluation
from runner.policy import Policy
from runner.seeding import Streams, env_seed, unchanged_globals
from tests.toys import Counter, Made, environment, policy, turn_around


class Noisy(Counter):
    """Rewards that depend on the seed of the episode."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(self.np_random.normal()), *rest


def made_evaluation(make=Noisy, episodes=3, final_episodes=5, seed=0, env=None):
    env = env or environment(make, seed=seed)
    return make_evaluation(env, policy(env, 0.5), Streams(seed), {"env_steps": 10}, episodes, final_episodes)


def test_the_same_weights_get_the_same_returns():
    one = made_evaluation("CartPole-v1")
    first, second = one.run(), one.run()
    assert first.returns.tolist() == second.returns.tolist()
    assert len(set(made_evaluation(episodes=6).run().returns.tolist())) == 6


def test_new_weights_are_evaluated():
    one = made_evaluation("CartPole-v1", episodes=5)
    before = one.run().returns.mean()
    turn_around(one.policy.network)
    assert one.run().returns.mean() != before


def test_each_episode_has_its_seed_and_final_ones_differ():
    made = Made(Noisy)
    one = made_evaluation(made, episodes=2, final_episodes=3, seed=4)
    one.run()
    one.run("final_evaluation")
    seeds = [env.seeds for env in made.envs[1:]]  # the first is the collector's
    expected = [[env_seed(4, stream, episode) for stream in ("evaluation", "final_evaluation")] for episode in range(2)]
    assert seeds == [*expected, [env_seed(4, "final_evaluation", 2)]]
    training = {env_seed(4, "env", 0, episode) for episode in range(1_000)}
    assert not training & {seed for of_env in seeds for seed in of_env}


def test_environments_are_made_once_and_used_again():
    made = Made(Noisy)
    one = made_evaluation(made)
    for _ in range(3):
        one.run()
    assert len(made.envs) == 1 + 3
    one.run("final_evaluation")
    assert len(made.envs) == 1 + 5


def test_a_closed_evaluation_can_be_run_again():
    made = Made(Noisy)
    one = made_evaluation(made)
    first = one.run()
    one.close()
    assert one.run().returns.tolist() == first.returns.tolist()
    assert len(made.envs) == 1 + 3 + 3


def test_long_episodes_count_as_much_as_short_ones():
    lengths = iter([1, 1, 2, 10])  # the first is the collector's
    found = made_evaluation(lambda: Counter(next(lengths))).run()
    # Rewards count the steps: returns of 1, 1 + 2 and 1 + ... + 10, each once, though the short ones end first.
    assert (found.returns.tolist(), found.lengths.tolist()) == ([1, 3, 55], [1, 2, 10])
    assert found.metrics() == {
        "eval/return_mean": pytest.approx(59 / 3),
        "eval/return_std": pytest.approx(np.sqrt((1 + 9 + 55**2) / 3 - (59 / 3) ** 2)),
        "eval/length_mean": pytest.approx(13 / 3),
    }


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_an_episode_ends_by_termination_or_truncation(end):
    assert made_evaluation(partial(Counter, 4, end)).run().lengths.tolist() == [4, 4, 4]


def test_an_episode_without_an_end_is_cut(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_EPISODE_STEPS", 50)
    assert made_evaluation(partial(Counter, 10**9)).run().lengths.tolist() == [50, 50, 50]


def test_actions_are_the_best_ones():
    made = Made(Counter, 6)
    one = made_evaluation(made, episodes=1)
    one.run()
    with torch.no_grad():
        observations = torch.tensor([[t, 0.1] for t in range(6)])
        best = one.policy.network(observations).argmax(-1).tolist()
    assert made.envs[1].actions == best


def test_training_does_not_notice():
    env = environment("CartPole-v1")
    env.start()
    one = made_evaluation(env=env)
    before, exploration = torch.get_rng_state(), one.policy.state_dict()
    numbers, observation = np.random.get_state()[1].copy(), env.observation.copy()
    one.run()
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)
    assert one.policy.state_dict() == exploration
    assert np.array_equal(env.observation, observation)


def test_a_network_with_dropout_is_evaluated_without_it_and_the_global_generators_are_left_alone():
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 3))
    copied = Policy(network, environment().spec).copy()
    assert not copied.network.training
    assert network.training
    before = torch.get_rng_state()
    with unchanged_globals():
        torch.rand(3), np.random.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
