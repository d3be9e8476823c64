"""A policy that was exported acts as it did, without us."""

import numpy as np
import pytest
import torch

from runner.config.export import export_policy
from runner.networks.actor_critic import make_actor_critic, make_recurrent_actor_critic
from runner.networks.distributional import make_q_dist_network
from runner.policy import Policy
from tests.toys import environment, policy

OBSERVATION = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def exported(one, tmp_path):
    export_policy(one, tmp_path / "policy.pt2")
    return torch.export.load(tmp_path / "policy.pt2").module()


def test_values_of_actions(tmp_path):
    one = policy(environment("CartPole-v1"))
    act = exported(one, tmp_path)
    assert act(torch.from_numpy(OBSERVATION)).tolist() == one.greedy(OBSERVATION)
    assert act(torch.from_numpy(OBSERVATION[:3])).tolist() == one.greedy(OBSERVATION[:3])


def test_distributions_over_values(tmp_path):
    spec = environment("CartPole-v1").spec
    one = Policy(make_q_dist_network(spec, [8], n_atoms=7)["q_dist"], spec)
    act = exported(one, tmp_path)
    assert act(torch.from_numpy(OBSERVATION)).tolist() == one.greedy(OBSERVATION)
    assert len({*one.greedy(OBSERVATION)}) == 2  # not one action everywhere


def test_vectors_within_their_bounds(tmp_path):
    spec = environment("Pendulum-v1").spec
    one = Policy(make_actor_critic(spec, [8], policy_gain=50.0)["policy"], spec)
    act, observation = exported(one, tmp_path), OBSERVATION[:, :3].copy()
    assert np.allclose(act(torch.from_numpy(observation)).numpy(), np.array(one.greedy(observation)), atol=1e-5)
    assert act(torch.from_numpy(observation)).abs().max() <= 2


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_remembered_goes_in_and_comes_out(cell, tmp_path):
    spec = environment("CartPole-v1").spec
    one = Policy(make_recurrent_actor_critic(spec, encoded=6, features=5, cell=cell)["policy"], spec)
    act = exported(one, tmp_path)
    memory, ours = torch.zeros(5, one.memory_size), np.zeros((5, one.memory_size), np.float32)
    for step in range(3):
        observation = OBSERVATION + step
        action, memory = act(torch.from_numpy(observation), memory)
        assert action.tolist() == one.greedy(observation, ours)
        assert np.allclose(memory.numpy(), ours, atol=1e-6)
    assert ours.any()
