"""A policy and what it thinks states are worth, as perceptrons of their own or over common layers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.distributions import Normal, stochastic
from runner.networks.mlp import MLP, Activation
from runner.networks.normalizer import ObservationNormalizer
from runner.spec import EnvSpec
from runner.types import NonNegativeFloat, PositiveInt


class NormalMLP(MLP):
    """Means by the network and logarithms of standard deviations that are the same everywhere: ``[..., 2 A]``."""

    def __init__(self, *arguments: Any, log_std: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        last: Any = self.layers[-1]
        self.log_std = nn.Parameter(torch.full((last.out_features,), log_std))

    def forward(self, observation: Tensor) -> Tensor:
        """``[..., *input_shape] -> [..., 2 A]``."""
        mean = super().forward(observation)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)

    def forward_numpy(self, observation: np.ndarray) -> np.ndarray:
        mean = super().forward_numpy(observation)
        return np.concatenate([mean, np.broadcast_to(self.log_std.detach().numpy(), mean.shape)], -1)


def make_actor_critic(
    spec: EnvSpec,
    hidden: list[PositiveInt],
    activation: Activation = "tanh",
    shared: bool = False,
    log_std: float = 0.0,
    policy_gain: NonNegativeFloat = 0.01,
    has_value: bool = True,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """Networks ``policy`` ``[..., *observation] -> [..., size]`` and ``value`` ``[..., *observation] -> [..., 1]``.

    Layers begin orthogonal (Saxe et al. 2014), hidden ones with a gain of ``sqrt(2)``, and without bias.

    Args:
        shared: let both have the same hidden layers.
        log_std: of vector actions, to begin with.
        policy_gain: of the last layer of the policy; a small one begins with actions that are all alike.
        has_value: whether there is a network ``value``.
        normalize_observations: each element by its running mean and variance, which are part of the networks.
    """
    distribution = stochastic(spec)
    normalizer = ObservationNormalizer(spec.observation_shape) if normalize_observations else None
    shape = spec.observation_shape
    policy: MLP
    if isinstance(distribution, Normal):
        policy = NormalMLP(shape, hidden, distribution.size // 2, activation, normalizer, log_std=log_std)
    else:
        policy = MLP(shape, hidden, distribution.size, activation, normalizer)
    policy.distribution = distribution
    begin_orthogonal(list(policy.layers), policy_gain)
    networks: dict[str, nn.Module] = {"policy": policy}
    if has_value:
        value = MLP(shape, hidden, 1, activation, normalizer)
        begin_orthogonal(list(value.layers), 1.0)
        if shared:
            value.share_hidden_layers(policy)
        networks["value"] = value
    return networks


def begin_orthogonal(layers: Sequence[Any], last_gain: float) -> None:
    """Set weights and biases in place."""
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)
