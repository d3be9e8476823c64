from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from runner.networks.cnn import make_q_cnn
from runner.networks.mlp import MLP, make_q_network
from runner.networks.normalizer import ObservationNormalizer
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


def pixels(shape, num_actions=3, high=255.0):
    return replace(spec(shape, num_actions), observation_dtype=np.dtype(np.uint8), observation_high=high)


def bytes_of(*shape, high=256):
    return torch.randint(0, high, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def in_sequence(network, channels_first, high=255.0):
    """The same layers by torch's own means, of images that are channels first already."""
    parts = [one for layer in network.convolutions for one in (layer, nn.ReLU())]
    *hidden, last = network.linears
    parts += [nn.Flatten(), *[one for layer in hidden for one in (layer, nn.ReLU())], last]
    return nn.Sequential(*parts)(channels_first.float() / high)


def test_large_images_get_the_layers_of_the_nature_paper():
    network = make_q_cnn(pixels((4, 84, 84)))["q"]
    shapes = [tuple(layer.weight.shape) for layer in (*network.convolutions, *network.linears)]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 3136), (3, 512)]  # 7 x 7 x 64 = 3136
    assert [layer.stride for layer in network.convolutions] == [(4, 4), (2, 2), (1, 1)]
    images = bytes_of(2, 4, 84, 84)
    torch.testing.assert_close(network(images), in_sequence(network, images))


def test_small_images_get_one_layer():
    network = make_q_cnn(pixels((10, 10, 4), high=1.0))["q"]
    shapes = [tuple(layer.weight.shape) for layer in (*network.convolutions, *network.linears)]
    assert shapes == [(16, 4, 3, 3), (128, 1024), (3, 128)]
    images = bytes_of(2, 10, 10, 4, high=2)
    torch.testing.assert_close(network(images), in_sequence(network, images.permute(0, 3, 1, 2), 1.0))


@pytest.mark.parametrize(
    ("shape", "channels_first"),
    [
        ((10, 12), lambda x: x.unsqueeze(1)),
        ((3, 10, 12), lambda x: x),
        ((10, 12, 3), lambda x: x.permute(0, 3, 1, 2)),
        ((2, 10, 12, 3), lambda x: torch.cat([x[:, i].permute(0, 3, 1, 2) for i in range(2)], 1)),  # a stack in colour
    ],
)
def test_channels_are_found_wherever_they_are(shape, channels_first):
    network = make_q_cnn(pixels(shape), hidden=[8])["q"]
    images = bytes_of(5, *shape)
    torch.testing.assert_close(network(images), in_sequence(network, channels_first(images)))
    torch.testing.assert_close(network(images.reshape(5, 1, *shape)), network(images).unsqueeze(1))
    torch.testing.assert_close(network(images[0]), network(images)[0])


@pytest.mark.parametrize(
    ("shape", "convolutions", "words"),
    [((4,), None, "needs images"), ((10, 10), [(8, 5, 3), (8, 3, 1)], "2 x 2 pixels are left for a kernel of 3")],
)
def test_images_that_convolutions_cannot_take_are_refused(shape, convolutions, words):
    with pytest.raises(ValueError, match=words):
        make_q_cnn(pixels(shape), convolutions)


def test_running_statistics_are_those_of_all_that_was_seen():
    torch.manual_seed(0)
    rows = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.01]) + torch.tensor([0.0, -3.0, 1e4])
    normalizer = ObservationNormalizer((3,))
    for part in rows.split([1, 7, 292, 700]):
        normalizer.observe(part.reshape(-1, 1, 3))
    exact = rows.double().numpy()
    np.testing.assert_allclose(normalizer.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose((normalizer.squares / normalizer.count).numpy(), exact.var(0), rtol=1e-6)
    np.testing.assert_allclose(normalizer(rows)[:, :2].mean(0).numpy(), [0, 0], atol=1e-5)
    np.testing.assert_allclose(normalizer(rows)[:, :2].std(0).numpy(), [1, 1], atol=1e-3)


def test_running_statistics_survive_a_large_offset():
    """E[x^2] - E[x]^2 in float64 would be wrong by the size of the variance here."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(10_000, 1))) + 1e8
    normalizer = ObservationNormalizer((1,))
    for part in rows.split(10):
        normalizer.observe(part)
    naive = (rows.square().mean() - rows.mean().square()).item()
    exact = rows.numpy().var()
    assert abs(naive - exact) > 0.5
    np.testing.assert_allclose((normalizer.squares / normalizer.count).item(), exact, rtol=1e-6)


def test_what_never_changes_is_shifted_and_what_is_far_out_is_cut():
    normalizer = ObservationNormalizer((2,))
    assert normalizer(torch.tensor([3.0, -70.0])).tolist() == [3.0, -10.0]  # nothing seen so far
    normalizer.observe(torch.tensor([[0.1, 0.0], [0.1, 2.0], [0.1, 4.0], [0.1, 6.0]]))
    # The mean is 3, the variance 5.
    torch.testing.assert_close(normalizer(torch.tensor([0.6, 3 + 2 * 5**0.5])), torch.tensor([0.5, 2.0]))
    assert normalizer(torch.tensor([0.1, 1e9]))[1] == 10


def test_normalized_values_are_those_of_normalized_observations_in_torch_and_in_numpy():
    torch.manual_seed(0)
    network = make_q_network(spec(), [8], "tanh", normalize_observations=True)["q"]
    rows = torch.randn(50, 4) * 30 + 7
    network.normalizer.observe(rows)
    plain = deepcopy(network)
    plain.normalizer = None
    expected = plain((rows - rows.mean(0)) / rows.std(0, correction=0))
    torch.testing.assert_close(network(rows), expected)
    assert network.has_numpy
    np.testing.assert_allclose(network.forward_numpy(rows[3].numpy()), expected[3].detach().numpy(), atol=1e-5)
    before = rows[:2].clone()
    assert np.array_equal(network.normalizer.forward_numpy(rows[:2].numpy()), network.normalizer(rows[:2]).numpy())
    assert torch.equal(rows[:2], before)


def test_images_are_normalized_by_one_mean_and_one_variance():
    network = make_q_cnn(pixels((2, 10, 12)), normalize_observations=True)["q"]
    images = bytes_of(6, 2, 10, 12)
    network.normalizer.observe(images)
    assert network.normalizer.mean.shape == ()
    x = images.float()
    torch.testing.assert_close(network(images), in_sequence(network, (x - x.mean()) / x.std(correction=0), 1.0))


def test_the_statistics_are_saved_with_the_network_and_copied_with_it():
    one, other = (make_q_network(spec(), [8], "relu", normalize_observations=True)["q"] for _ in range(2))
    one.normalizer.observe(torch.randn(9, 4))
    other.load_state_dict(one.state_dict())
    copy = deepcopy(one)
    rows = torch.randn(3, 4)
    assert torch.equal(one(rows), other(rows))
    one.normalizer.observe(torch.randn(9, 4) + 5)
    assert torch.equal(copy(rows), other(rows))  # neither changes with the original
    assert not torch.equal(copy(rows), one(rows))
