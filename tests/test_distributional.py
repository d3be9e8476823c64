"""Networks that say distributions over values, and policies that act by them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from runner.builders import make_collector_offpolicy, make_policy
from runner.distributions import ArgmaxOfMeans
from runner.exploration import EpsilonGreedy
from runner.networks.distributional import make_q_dist_cnn, make_q_dist_network
from runner.spec import EnvSpec
from tests.envs.masked import SaysSo
from tests.toys import environment

SPEC = EnvSpec("d", (3,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=4)
IMAGES = EnvSpec("i", (8, 8, 3), np.dtype(np.uint8), (), np.dtype(np.int64), num_actions=4, observation_high=255.0)
VECTORS = EnvSpec("v", (3,), np.dtype(np.float32), (2,), np.dtype(np.float32),
                  action_low=-np.ones(2, np.float32), action_high=np.ones(2, np.float32))  # fmt: skip


def test_a_network_has_an_output_for_each_value_of_each_action():
    networks = make_q_dist_network(SPEC, [8], "tanh", n_atoms=5, v_min=-1, v_max=3)
    network = networks["q_dist"]
    assert list(networks) == ["q_dist"]  # by a name that no loss of plain values works on
    assert network(torch.zeros(7, 2, 3)).shape == (7, 2, 20)
    assert isinstance(network.distribution, ArgmaxOfMeans)
    assert network.distribution.atoms.tolist() == [-1, 0, 1, 2, 3]
    images = make_q_dist_cnn(IMAGES, n_atoms=5)["q_dist"]
    assert images(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).shape == (2, 20)
    assert (images.distribution.v_min, images.distribution.v_max) == (-10, 10)


@pytest.mark.parametrize("make", [make_q_dist_network, make_q_dist_cnn])
def test_actions_that_are_vectors_are_refused(make):
    with pytest.raises(ValueError, match="action values need discrete actions"):
        make(VECTORS, hidden=[8])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_atoms": 1}, "n_atoms=1: a distribution over values needs two"),
        ({"v_min": 10.0}, "v_min=10 and v_max=10"),
        ({"v_min": 11.0}, "v_min=11 and v_max=10"),
        ({"v_max": float("nan")}, "v_max=nan"),
        ({"v_max": 1e308, "v_min": -1e308}, "v_min=-1e\\+308"),
    ],
    ids=str,
)
def test_values_that_are_none_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        make_q_dist_network(SPEC, [8], **values)


def test_a_policy_takes_the_action_with_the_largest_mean():
    torch.manual_seed(0)
    networks = make_q_dist_network(SPEC, [16], n_atoms=7)
    policy = make_policy(networks, SPEC)
    observation = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    with torch.no_grad():
        dist = networks["q_dist"](torch.from_numpy(observation)).view(50, 4, 7).softmax(-1)
    means = (dist * torch.linspace(-10, 10, 7)).sum(-1)
    assert policy.greedy(observation) == means.argmax(-1).tolist()  # more rows than numpy does
    assert [policy.greedy(row[None])[0] for row in observation] == means.argmax(-1).tolist()
    mask = np.random.default_rng(1).random((50, 4)) < 0.5
    mask[:, 2] = True
    best = means.masked_fill(~torch.from_numpy(mask), -99).argmax(-1)
    assert policy.greedy(observation, mask=mask) == best.tolist()
    copy = policy.copy()
    assert copy.greedy(observation) == policy.greedy(observation)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_exploration_takes_only_actions_that_can_be_taken(epsilon):
    env = environment(SaysSo, num_envs=2)  # which raises where another is taken
    networks = make_q_dist_network(env.spec, [8], n_atoms=7)
    exploration = EpsilonGreedy(
        np.random.default_rng(0), env.spec, epsilon, epsilon, 0, distribution=networks["q_dist"].distribution
    )
    batch = next(iter(make_collector_offpolicy(env, make_policy(networks, env.spec, exploration), 100)))
    assert batch["action_mask"].gather(-1, batch["action"].unsqueeze(-1)).all()


def test_one_spec_is_not_changed_by_another():
    one, other = (make_q_dist_network(replace(SPEC, num_actions=n), [8], n_atoms=3)["q_dist"] for n in (2, 5))
    assert (one.distribution.size, other.distribution.size) == (6, 15)
