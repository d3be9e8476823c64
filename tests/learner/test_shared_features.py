"""Policy and value over features that have an optimization of their own, within a Learner."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from runner.builders import make_learner
from runner.learner.features import FeatureNetwork, FeatureOptimization
from runner.learner.optimizers import adam, sgd
from runner.learner.shared import NETWORKS
from runner.losses.a2c import A2CLoss
from runner.networks.actor_critic import make_actor_critic, make_shared_features
from tests.learner.small import same_state
from tests.learner.test_shared_modules import advantages
from tests.learner.test_staged import update
from tests.test_networks import spec

BATCHES = 12


ADAM, SGD = partial(adam, lr=1e-2), partial(sgd, lr=0.1)


def learner_of(make, seed=0, optimizer=ADAM, **options):
    torch.manual_seed(seed)
    networks = make(spec(), [8, 8])
    loss = A2CLoss(networks["policy"].distribution)
    return make_learner(networks, loss, optimizer, **options)


def model_of(learner, name):
    return dict(learner.modules["default"].networks[name].model.state_dict())


def learn(learner, numbers=range(BATCHES)):
    return [update(learner, advantages(number)) for number in numbers]


def joint(**options):
    """One optimizer over all: one backward pass from the sum of both losses."""
    return learner_of(partial(make_actor_critic, shared=True), compile="none", **options)


@pytest.mark.parametrize("optimizer", [ADAM, SGD])
def test_features_with_an_optimization_of_their_own_move_as_in_one_backward_pass(optimizer):
    apart, together = learner_of(make_shared_features, optimizer=optimizer), joint(optimizer=optimizer)
    learn(apart)
    learn(together)
    for name in ("policy", "value"):
        for own, other in zip(model_of(apart, name).values(), model_of(together, name).values(), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("silent", ["policy", "value"])
def test_each_head_reaches_the_features(silent):
    torch.manual_seed(0)
    networks = make_shared_features(spec(), [8, 8])
    loss = A2CLoss(networks["policy"].distribution, entropy_coeff=0.0, critic_coeff=float(silent != "value"))
    learner = make_learner(networks, loss, ADAM)
    before = model_of(learner, "features")["layers.0.weight"].clone()
    batch = advantages(0)
    if silent == "policy":
        batch["advantage"].zero_()
    update(learner, batch)
    assert not torch.equal(model_of(learner, "features")["layers.0.weight"], before)


def test_each_optimization_has_its_own_parameters_rate_and_bound():
    options = {"features": {"lr": 1e-4, "clip": 0.25}}
    learner = learner_of(make_shared_features, optimizations=options, clip=0.5)
    heads, features = learner.optimizations()
    assert (heads.name, heads.lr, heads.clip.max, len(heads.parameters)) == ("default", 1e-2, 0.5, 4)
    assert (features.name, features.lr, features.clip.max, len(features.parameters)) == ("features", 1e-4, 0.25, 4)
    assert type(features) is FeatureOptimization
    assert type(learner.modules["default"].networks["features"]) is FeatureNetwork
    metrics = learn(learner, [0])[0]
    assert {"grad_norm/default", "grad_norm/features", "loss/policy", "loss/value"} <= metrics.keys()


def test_features_cannot_wait_for_longer_than_one_update():
    with pytest.raises(ValueError, match=r"learner.optimizations.features.every"):
        learner_of(make_shared_features, optimizations={"features": {"every": 2}})


def test_where_no_head_is_due_the_features_stay():
    learner = learner_of(make_shared_features, update_every=2)
    learn(learner, [0])
    before = learner.state_dict()["rl_module"]["default"]["features"]["model"]["layers.0.weight"].clone()
    learn(learner, [1])
    assert torch.equal(model_of(learner, "features")["layers.0.weight"], before)
    learn(learner, [2])
    assert not torch.equal(model_of(learner, "features")["layers.0.weight"], before)


def test_losses_that_were_only_looked_at_leave_nothing_behind():
    one, other = learner_of(make_shared_features), learner_of(make_shared_features)
    one.compute_losses(advantages(99))
    learn(one)
    learn(other)
    assert same_state(one.state_dict(), other.state_dict())
    assert one.modules["default"].networks["features"].waiting() == []
    assert one.modules["default"].networks["features"] not in NETWORKS


def test_an_update_that_is_skipped_leaves_features_and_heads_where_they_were():
    learner = learner_of(make_shared_features, non_finite="skip")
    learn(learner, [0])
    before = {name: [one.clone() for one in model_of(learner, name).values()] for name in ("policy", "value")}
    batch = advantages(1)
    batch["advantage"][0] = torch.inf
    update(learner, batch)
    for name, tensors in before.items():
        assert same_state(tensors, list(model_of(learner, name).values()))
    assert [one.skipped for one in learner.optimizations()] == [1, 1]


def test_learning_goes_on_bit_for_bit_from_a_saved_state():
    whole, first, second = (learner_of(make_shared_features, seed, clip=0.5) for seed in (0, 0, 1))
    learn(whole)
    learn(first, range(7))
    learn(second, [3])
    second.load_state_dict(first.state_dict())
    learn(second, range(7, BATCHES))
    parts = ("rl_module", "optimizer")
    assert same_state(*([one.state_dict()[part] for part in parts] for one in (whole, second)))


@pytest.mark.parametrize("make", [make_actor_critic, partial(make_actor_critic, shared=True), make_shared_features])
def test_layers_are_called_in_the_precision_of_the_learner_whoever_shares_them(make):
    outputs = []
    learner = learner_of(make, optimizer=SGD, precision="bf16", compile="none")
    for network in learner.modules["default"].networks.values():
        for layer in network.model.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.dtype))
    learn(learner, [0])
    assert set(outputs) == {torch.bfloat16}


class Squares:
    """Squares of what both heads say, each of which asks the features anew."""

    hyper_parameters, targets = {}, ()

    def __init__(self):
        self.terms = {"squares": self.squares}

    def squares(self, networks, batch, hyper_parameters):
        said = {name: networks[name](batch["observation"]) for name in ("policy", "value")}
        return TensorDict({f"loss_{name}": one.square().mean() for name, one in said.items()})


@pytest.mark.parametrize(("precision", "atol"), [("bf16", 2e-3), ("fp16", 2e-3)])
def test_what_is_left_on_features_is_unscaled_once(precision, atol):
    def learned(precision):
        torch.manual_seed(0)
        networks = make_shared_features(spec(), [8, 8], policy_gain=1.0)
        learner = make_learner(networks, Squares(), SGD, clip=1.0, precision=precision)
        learn(learner)
        return learner

    full, half = learned("fp32"), learned(precision)
    for own, other in zip(model_of(half, "policy").values(), model_of(full, "policy").values(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=atol)
    assert not same_state(model_of(half, "features"), model_of(full, "features"))
    assert all(one.skipped == 0 for one in half.optimizations())
