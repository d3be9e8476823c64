from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from runner.networks.mlp import MLP, make_q_network
from runner.spec import EnvSpec


def spec(observation_shape=(4,), num_actions=2):
    return EnvSpec(
        id="Some-v0",
        observation_shape=observation_shape,
        observation_dtype=np.dtype(np.float32),
        action_shape=() if num_actions else (3,),
        action_dtype=np.dtype(np.int64 if num_actions else np.float32),
        num_actions=num_actions,
    )


def filled(net, *layers):
    with torch.no_grad():
        for layer, (weight, bias) in zip(net.layers, layers, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return net


def test_values_by_hand():
    net = filled(MLP((2,), [2], 1, "relu"), ([[1.0, 2.0], [-1.0, 0.0]], [0.5, 0.0]), ([[3.0, 5.0]], [-1.0]))
    # x = (1, 1): hidden relu(3.5, -1) = (3.5, 0), out 3 * 3.5 - 1 = 9.5
    # x = (-2, 0): hidden relu(-1.5, 2) = (0, 2), out 5 * 2 - 1 = 9; the last layer has no activation
    assert net(torch.tensor([[1.0, 1.0], [-2.0, 0.0]])).tolist() == [[9.5], [9.0]]
    assert net(torch.tensor([[0.0, -1.0]])).item() == -1.0


@pytest.mark.parametrize("name", ["relu", "tanh", "elu", "gelu", "silu"])
def test_the_activation_is_the_one_named(name):
    net = filled(MLP((1,), [1], 1, name), ([[1.0]], [0.0]), ([[1.0]], [0.0]))
    x = torch.linspace(-2, 2, 9).unsqueeze(-1)
    torch.testing.assert_close(net(x), getattr(F, name)(x))


@pytest.mark.parametrize(
    ("shape", "leading"), [((4,), ()), ((4,), (7,)), ((4,), (2, 3)), ((2, 3), (5,)), ((2, 3, 4), (6, 5)), ((), (5,))]
)
def test_observations_of_any_shape_and_any_leading_dimensions(shape, leading):
    net = MLP(shape, [8], 3, "tanh")
    observation = torch.randn(*leading, *shape)
    assert net(observation).shape == (*leading, 3)
    flat = observation.reshape(-1, net.layers[0].in_features)
    torch.testing.assert_close(net(observation).reshape(-1, 3), torch.stack([net(row.reshape(shape)) for row in flat]))


def test_a_copy_has_weights_of_its_own():
    net = MLP((2,), [3], 1, "relu")
    copy, x = deepcopy(net), torch.ones(1, 2)
    before = net(x)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    assert torch.equal(net(x), before)
    assert not torch.equal(copy(x), before)


def test_loaded_and_substituted_weights_are_used():
    net, other, x = MLP((2,), [3], 1, "relu"), MLP((2,), [3], 1, "relu"), torch.ones(1, 2)
    assert torch.equal(functional_call(net, other.state_dict(), (x,)), other(x))
    net.load_state_dict(other.state_dict())
    assert torch.equal(net(x), other(x))


def test_parameters_are_named_once():
    assert list(MLP((2,), [3], 1, "relu").state_dict()) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    ]


def test_a_q_network_takes_its_sizes_from_the_spec():
    net = make_q_network(spec((2, 5), num_actions=6), [7, 8], "relu")["q"]
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(7, 10), (8, 7), (6, 8)]
    assert net(torch.zeros(4, 2, 5)).shape == (4, 6)


def test_without_hidden_layers_it_is_linear():
    net = make_q_network(spec(), [], "relu")["q"]
    one, other = torch.randn(1, 4), torch.randn(1, 4)
    torch.testing.assert_close(net(one) + net(other), net(one + other) + net(torch.zeros(1, 4)))


def test_action_values_need_discrete_actions():
    with pytest.raises(ValueError, match=r"Some-v0.*\(3,\)"):
        make_q_network(spec(num_actions=None), [8], "relu")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float64, torch.bool])
def test_observations_of_other_kinds_of_number_are_taken_as_they_are(dtype):
    network, observation = MLP((3,), [4], 2, "relu"), torch.eye(3)
    assert torch.equal(network(observation.to(dtype)), network(observation))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_numpy_path_is_the_module_up_to_rounding_and_follows_its_weights(activation):
    torch.manual_seed(0)
    network = MLP((3,), [17, 9], 4, activation)
    observation = torch.randn(5, 3)
    for _ in range(2):
        expected = network(observation).detach().numpy()
        np.testing.assert_allclose(network.forward_numpy(observation.numpy()), expected, rtol=1e-5, atol=1e-6)
        with torch.no_grad():  # as an optimizer does
            for parameter in network.parameters():
                parameter.mul_(1.5)
    copied = deepcopy(network)
    with torch.no_grad():
        copied.layers[0].weight.zero_()
    expected = copied(observation).detach().numpy()
    np.testing.assert_allclose(copied.forward_numpy(observation.numpy()), expected, rtol=1e-5, atol=1e-6)
    copied.load_state_dict({name: 2 * value for name, value in network.state_dict().items()}, assign=True)
    expected = copied(observation).detach().numpy()
    np.testing.assert_allclose(copied.forward_numpy(observation.numpy()), expected, rtol=1e-5, atol=1e-6)


def test_the_numpy_path_leaves_its_input_alone():
    network, observation = MLP((3,), [8], 2, "relu"), np.full((1, 3), -1.0, np.float32)
    network.forward_numpy(observation)
    assert (observation == -1).all()


def test_networks_that_numpy_cannot_follow_say_so():
    assert MLP((3,), [8], 2, "tanh").has_numpy
    assert not MLP((3,), [8], 2, "gelu").has_numpy
    assert not MLP((3, 2), [8], 2, "relu").has_numpy
