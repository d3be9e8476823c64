import numpy as np
import torch
from torch import nn

from runner.distributions import Argmax, TanhDeterministic, bounds
from runner.policy import Policy
from tests.toys import environment, policy, same_tree, turn_around

ENV = environment("CartPole-v1")
OBSERVATION = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def test_the_greedy_action_has_the_highest_value():
    one = policy(ENV)
    with torch.no_grad():
        values = one.network(torch.from_numpy(OBSERVATION)).numpy()
    actions = one.greedy(OBSERVATION)
    assert actions == [int(row[1] > row[0]) for row in values]
    assert all(type(action) is int for action in actions)
    assert len(set(actions)) == 2


def test_argmax_is_over_actions():
    assert Argmax(3).mode(torch.tensor([[0.0, 2.0, 1.0], [5.0, 4.0, 3.0]])).tolist() == [1, 0]


def test_vector_actions_are_arrays():
    spec = environment("Pendulum-v1").spec
    one = Policy(nn.Linear(3, 1), spec, distribution=TanhDeterministic(*bounds(spec)))
    actions = one.greedy(np.zeros((2, 3), np.float32))
    assert [(action.shape, action.dtype) for action in actions] == [((1,), np.float32)] * 2


def test_new_weights_are_seen_at_once():
    one = policy(ENV)
    before = one.greedy(OBSERVATION)
    turn_around(one.network)
    assert one.greedy(OBSERVATION) == [1 - action for action in before]


def test_a_copy_is_frozen_and_never_explores():
    one = policy(ENV, epsilon=1.0)
    copy = one.copy()
    before = copy.greedy(OBSERVATION)
    turn_around(one.network)
    assert copy.exploration is None
    assert copy.greedy(OBSERVATION) == before != one.greedy(OBSERVATION)


def test_the_network_can_still_be_trained_after_acting():
    one = policy(ENV)
    one.greedy(OBSERVATION)
    one.network(torch.from_numpy(OBSERVATION)).sum().backward()
    assert all(parameter.grad is not None for parameter in one.network.parameters())


def test_the_state_is_that_of_the_exploration_alone():
    one, other = policy(ENV, 0.5), policy(ENV, 0.5, seed=1)
    one.exploration.plan((5, 1), 0, 0)
    other.load_state_dict(one.state_dict())
    assert list(one.state_dict()) == ["exploration"]
    assert same_tree(one.exploration.plan((9, 1), 0, 0), other.exploration.plan((9, 1), 0, 0))


def test_a_policy_without_exploration_has_no_state():
    one = policy(ENV).copy()
    one.load_state_dict(one.state_dict())
    assert (one.state_dict(), one.metrics(0)) == ({}, {})
