"""Ensembles of action values, and the networks around them."""

import numpy as np
import pytest
import torch
from torch import nn

from runner.distributions import TanhDeterministic, TanhNormal
from runner.networks.continuous import make_deterministic_policy_and_values, make_stochastic_policy_and_values
from runner.networks.ensemble import EnsembleLinear, QEnsemble
from runner.spec import EnvSpec
from tests.losses.parts import SPEC

DISCRETE = EnvSpec("d", (3,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=2)
MATRIX = EnvSpec("m", (3,), np.dtype(np.float32), (2, 2), np.dtype(np.float32),
                 action_low=-np.ones((2, 2), np.float32), action_high=np.ones((2, 2), np.float32))  # fmt: skip


def alone(ensemble, member):
    """One member as a chain of torch's own layers."""
    layers = []
    for layer in ensemble.layers:
        linear = nn.Linear(*layer.weight.shape[1:])
        linear.weight.data, linear.bias.data = layer.weight[member].T, layer.bias[member, 0]
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_each_member_is_a_network_of_its_own():
    torch.manual_seed(0)
    ensemble = QEnsemble(5, [8, 8], "relu", 3)
    observation, action = torch.randn(7, 3), torch.randn(7, 2)
    values = ensemble(observation, action)
    assert values.shape == (3, 7)
    for member in range(3):
        expected = alone(ensemble, member)(torch.cat([observation, action], -1)).squeeze(-1)
        torch.testing.assert_close(values[member], expected)
    assert not torch.equal(values[0], values[1])


def test_the_first_members_can_be_asked_alone():
    ensemble = QEnsemble(5, [8], "tanh", 3)
    observation, action = torch.randn(7, 3), torch.randn(7, 2)
    torch.testing.assert_close(ensemble(observation, action, 1), ensemble(observation, action)[:1])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_values_have_the_shape_of_the_batch(shape):
    ensemble = QEnsemble(8, [8], "relu", 2)  # an observation of 3 x 2 numbers
    assert ensemble(torch.randn(*shape, 3, 2), torch.randn(*shape, 2)).shape == (2, *shape)


def test_a_layer_begins_like_torchs_own():
    torch.manual_seed(0)
    ours, theirs = EnsembleLinear(50, 16, 64), nn.Linear(16, 64)
    for name in ("weight", "bias"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.abs().max() <= 0.25  # 1 / sqrt(16), the bound of torch's uniform distribution
        assert mine.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)
        assert other.abs().max() <= 0.25


def test_a_stochastic_policy_says_what_its_outputs_mean():
    networks = make_stochastic_policy_and_values(SPEC, [8], "relu", members=3, temperature=0.5)
    assert list(networks) == ["policy", "q", "log_alpha"]
    assert isinstance(networks["policy"].distribution, TanhNormal)
    assert networks["policy"](torch.zeros(4, 3)).shape == (4, 4)  # mean and deviation of two numbers
    assert networks["q"].members == 3
    assert networks["log_alpha"]().exp().item() == pytest.approx(0.5)


def test_a_deterministic_policy_says_what_its_outputs_mean():
    networks = make_deterministic_policy_and_values(SPEC, [8], "relu")
    assert list(networks) == ["policy", "q"]
    assert isinstance(networks["policy"].distribution, TanhDeterministic)
    assert networks["policy"](torch.zeros(4, 3)).shape == (4, 2)


@pytest.mark.parametrize("make", [make_stochastic_policy_and_values, make_deterministic_policy_and_values])
@pytest.mark.parametrize(("spec", "words"), [(DISCRETE, "one of 2 actions"), (MATRIX, r"shape \[2, 2\]")])
def test_other_actions_than_vectors_are_refused(make, spec, words):
    with pytest.raises(ValueError, match=words):
        make(spec, [8], "relu")
