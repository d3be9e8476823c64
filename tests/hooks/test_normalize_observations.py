"""Collected observations reach every normalizer, once each, and nothing else changes them."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from hooks.normalize_observations import NormalizeObservations
from runner.builders import make_dqn_loss, make_evaluation, make_learner, make_target_updater
from runner.learner.optimizers import adam
from runner.networks.mlp import make_q_network
from runner.policy import Policy
from runner.seeding import Streams
from runner.spec import OBSERVATION, Progress
from tests.toys import environment


class FakeTrainer:
    def __init__(self):
        self.progress, self.modules, self.ops = Progress(), {}, {}

    def register_module(self, name, module):
        self.modules[name] = module

    def register_op(self, point, operation):
        self.ops[point] = operation


def make(normalize=True, target=None, env=None):
    env = env or environment("CartPole-v1")
    torch.manual_seed(0)
    networks = make_q_network(env.spec, [8], "relu", normalize_observations=normalize)
    target = target or make_target_updater(rate=0.3)
    learner = make_learner(networks, make_dqn_loss(), lambda params: adam(params, lr=1e-2), target_updater=target)
    return learner, networks["q"]


def batch(seed=0, rows=(2, 5)):
    generator = torch.Generator().manual_seed(seed)
    return TensorDict({OBSERVATION: torch.randn(*rows, 4, generator=generator) * 3 + 1}, rows)


def transitions(seed):
    found = batch(seed, (16,))
    following = {
        "observation": found[OBSERVATION] + 1,
        "reward": torch.ones(16),
        "terminated": torch.zeros(16, dtype=torch.bool),
    }
    return found.set("action", torch.arange(16) % 2).set("next", TensorDict(following, [16]))


def hooked(learner, **options):
    hook, trainer = NormalizeObservations(learner, **options), FakeTrainer()
    hook.register(trainer)
    return hook, trainer


def test_without_a_normalizer_it_costs_nothing():
    hook, trainer = hooked(make(normalize=False)[0])
    assert (trainer.modules, trainer.ops) == ({}, {})
    assert hook.state_dict() == {}


@pytest.mark.parametrize("target", [{"rate": 0.3}, {"update_frequency": 2}, {}])
def test_the_network_and_its_target_have_the_same_statistics_in_every_update(target):
    learner, q = make(target=make_target_updater(**target))
    hook, trainer = hooked(learner)
    assert trainer.ops["batch_process"] is hook
    followed = learner.modules["default"].networks["q"].target.model
    for seed in range(5):
        hook(batch(seed))
        data = transitions(seed)
        learner.step(learner.compute_losses(data), data)
        for (name, one), other in zip(q.normalizer.named_buffers(), followed.normalizer.buffers(), strict=True):
            assert torch.equal(one, other), name
    assert q.normalizer.count == 50  # once each, also where the target is the network itself


def test_rows_that_are_no_data_do_not_count():
    learner, q = make()
    hook, _ = hooked(learner)
    data, mask = batch(), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, :3] = True
    hook(data.set(("collector", "mask"), mask))
    assert q.normalizer.count == 3
    torch.testing.assert_close(q.normalizer.mean, data[OBSERVATION][0, :3].double().mean(0))


def test_they_stay_as_they_are_from_some_step_on():
    learner, q = make()
    hook, trainer = hooked(learner, until_env_steps=10)
    for _ in range(3):
        trainer.progress.env_steps += 10
        hook(batch())
    assert q.normalizer.count == 10


def test_random_steps_come_first_and_once_and_leave_the_generators_alone():
    env = environment("CartPole-v1")
    learner, q = make(env=env)
    hook, _ = hooked(learner, environment=env, init_env_steps=300)
    before = torch.get_rng_state()
    hook(batch())
    hook(batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert q.normalizer.count == 300 + 20
    assert np.array_equal(env.random_observations(7), environment("CartPole-v1").random_observations(7))
    with pytest.raises(ValueError, match="needs an environment"):
        NormalizeObservations(learner, init_env_steps=1)


def test_evaluation_sees_the_statistics_and_never_changes_them():
    env = environment("CartPole-v1")
    learner, q = make(env=env)
    hook, _ = hooked(learner)
    hook(batch())
    policy = Policy(q, env.spec)
    assert torch.equal(policy.copy().network.normalizer.mean, q.normalizer.mean)
    make_evaluation(env, policy, Streams(0), {"env_steps": 1}, episodes=2).run()
    assert q.normalizer.count == 10


def test_the_learner_saves_them():
    learner, q = make()
    hook, _ = hooked(learner)
    hook(batch())
    other, copied = make()
    other.load_state_dict(learner.state_dict())
    assert all(torch.equal(*pair) for pair in zip(q.buffers(), copied.buffers(), strict=True))
