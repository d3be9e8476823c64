"""Transitions with vectors as actions, and small networks over them."""

import numpy as np
import torch
from tensordict import TensorDict

from runner.spec import EnvSpec

LOW, HIGH = np.array([-1.0, -3.0], np.float32), np.array([1.0, 1.0], np.float32)
SPEC = EnvSpec("x", (3,), np.dtype(np.float32), (2,), np.dtype(np.float32), action_low=LOW, action_high=HIGH)


def transitions(size=8, seed=0, dtype=torch.float32, **more):
    """``more``: further entries of ``next``."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    low, high = torch.from_numpy(LOW), torch.from_numpy(HIGH)
    following = {
        "observation": normal(size, 3),
        "reward": normal(size),
        "terminated": torch.rand(size, generator=rng) < 0.3,
        **more,
    }
    action = low + (high - low) * torch.rand(size, 2, generator=rng)
    return TensorDict(
        {"observation": normal(size, 3), "action": action.to(dtype), "next": TensorDict(following, [size])}, [size]
    )


def with_noise(loss, batch, seed=0):
    for key, noise in loss.draw(batch, torch.Generator().manual_seed(seed)).items():
        batch.set(key, noise)
    return batch


def arrays(batch, *keys):
    return [batch.get(key).double().numpy() for key in keys]


def as_numpy(network):
    """A multi-layer perceptron of ReLUs as a function of arrays, in double precision."""
    layers = [(one.weight.detach().double().numpy(), one.bias.detach().double().numpy()) for one in network.layers]

    def call(x):
        for weight, bias in layers[:-1]:
            x = np.maximum(x @ weight.T + bias, 0)
        return x @ layers[-1][0].T + layers[-1][1]

    return call


def members_as_numpy(ensemble):
    """One function of arrays for each member."""
    layers = [(one.weight.detach().double().numpy(), one.bias.detach().double().numpy()) for one in ensemble.layers]

    def member(index):
        def call(observation, action):
            x = np.concatenate([observation, action], -1)
            for weight, bias in layers[:-1]:
                x = np.maximum(x @ weight[index] + bias[index], 0)
            return (x @ layers[-1][0][index] + layers[-1][1][index])[:, 0]

        return call

    return [member(index) for index in range(ensemble.members)]
