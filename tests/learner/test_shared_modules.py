"""Networks that have tensors in common, or that follow themselves, learn as any others."""

import pytest
import torch

from runner.builders import make_learner
from runner.learner.optimizers import adam
from runner.learner.targets import PolyakTarget, TrivialTarget
from runner.losses.a2c import A2CLoss
from runner.losses.dqn import DQNLoss
from runner.networks.actor_critic import make_actor_critic
from runner.networks.mlp import MLP
from tests.learner.test_tracing import transitions
from tests.test_networks import spec


def actor_critic(compile, shared, normalize=False):
    torch.manual_seed(0)
    networks = make_actor_critic(spec(), [8, 8], shared=shared, normalize_observations=normalize)
    loss = A2CLoss(networks["policy"].distribution)
    return make_learner(networks, loss, lambda params: adam(params, lr=1e-2), compile=compile, clip=0.5), networks


def following_itself(compile, target):
    torch.manual_seed(0)
    networks = {"q": MLP((4,), [8, 8], 2, "tanh")}
    loss = DQNLoss(0.9, double=True, loss_function="l2")
    learner = make_learner(networks, loss, lambda params: adam(params, lr=1e-2), target_updater=target, compile=compile)
    return learner, networks


def advantages(seed):
    batch = transitions(seed=seed)
    return batch.set("advantage", batch["next", "reward"]).set("value_target", batch["observation"].sum(-1))


CASES = {
    "shared layers": (lambda compile: actor_critic(compile, shared=True), advantages),
    "layers of their own": (lambda compile: actor_critic(compile, shared=False), advantages),
    "shared statistics": (lambda compile: actor_critic(compile, shared=True, normalize=True), advantages),
    "a network that follows itself": (
        lambda compile: following_itself(compile, TrivialTarget()),
        lambda seed: transitions(seed=seed),
    ),
    "a network that is followed": (
        lambda compile: following_itself(compile, PolyakTarget(0.1)),
        lambda seed: transitions(seed=seed),
    ),
}


def weights(networks):
    return [one.detach().clone() for network in networks.values() for one in network.parameters()]


@pytest.mark.parametrize("name", CASES)
def test_recorded_updates_move_all_weights_as_autograd_does_to_the_bit(name):
    make, batch_of = CASES[name]
    (traced, ours), (plain, theirs) = make("trace"), make("none")
    before = weights(ours)
    for seed in range(8):
        for learner in (traced, plain):
            batch = batch_of(seed)
            learner.step(learner.compute_losses(batch), batch)
            learner.progress.updates += 1
        assert all(torch.equal(*pair) for pair in zip(weights(ours), weights(theirs), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(weights(ours), before, strict=True))
    assert all(one._programs for (recorder,) in traced._recorders.values() for one in [recorder])


def test_shared_layers_stay_shared():
    learner, networks = actor_critic("trace", shared=True)
    for seed in range(3):
        batch = advantages(seed)
        learner.step(learner.compute_losses(batch), batch)
    shared = set(networks["policy"].parameters()) & set(networks["value"].parameters())
    assert len(shared) == 4  # weight and bias of two layers
