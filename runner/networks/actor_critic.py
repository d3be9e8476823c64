"""A policy and what it thinks states are worth, over trunks of their own or a common one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from runner.distributions import stochastic
from runner.networks.cnn import Convolution, FeatureCNN, make_cnn
from runner.networks.headed import Head, Headed, make_head
from runner.networks.mlp import Activation, FeatureMLP
from runner.networks.normalizer import ObservationNormalizer
from runner.networks.recurrent import Cell, RecurrentTrunk, Twin, begin_orthogonal_cell
from runner.spec import EnvSpec
from runner.types import NonNegativeFloat, PositiveInt


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
    normalizer = ObservationNormalizer(spec.observation_shape) if normalize_observations else None

    def make_trunk() -> FeatureMLP:
        trunk = FeatureMLP(spec.observation_shape, hidden[:-1], hidden[-1], activation, normalizer)
        begin_orthogonal(list(trunk.layers), math.sqrt(2))
        return trunk

    if not hidden:
        raise ValueError("network.hidden=[] leaves nothing between an observation and what is made of it")
    return _with_heads(spec, make_trunk, shared, log_std, policy_gain, has_value)


def make_shared_features(
    spec: EnvSpec,
    hidden: list[PositiveInt],
    activation: Activation = "tanh",
    log_std: float = 0.0,
    policy_gain: NonNegativeFloat = 0.01,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """The same over a network ``features`` of its own, which both share: it is moved by an optimization of its own."""
    both = make_actor_critic(spec, hidden, activation, True, log_std, policy_gain, True, normalize_observations)
    return {"features": both["policy"].trunk, **both}  # type: ignore[dict-item]


def make_recurrent_actor_critic(
    spec: EnvSpec,
    encoded: PositiveInt = 64,
    features: PositiveInt = 64,
    cell: Cell = "lstm",
    shared: bool = False,
    log_std: float = 0.0,
    policy_gain: NonNegativeFloat = 0.01,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """Networks ``policy`` and ``value`` that remember an episode; what they remember is part of each batch.

    Args:
        encoded, features: widths of the layer before the cell, and of the cell.
        shared: let both remember the same; values of large size then leave the policy little of it.
    """
    normalizer = ObservationNormalizer(spec.observation_shape) if normalize_observations else None

    def make_one() -> RecurrentTrunk:
        trunk = RecurrentTrunk(spec, encoded, features, cell, normalizer)
        begin_orthogonal_cell(trunk)
        return trunk

    def make_trunk() -> RecurrentTrunk | Twin:
        return make_one() if shared else Twin(make_one(), make_one())

    networks: dict[str, Any] = _with_heads(spec, make_trunk, True, log_std, policy_gain, True)
    if not shared:
        networks["policy"].head.part, networks["value"].head.part = slice(features), slice(features, None)
    return networks


def make_actor_critic_cnn(
    spec: EnvSpec,
    convolutions: list[Convolution] | None = None,
    hidden: list[PositiveInt] | None = None,
    shared: bool = True,
    log_std: float = 0.0,
    policy_gain: NonNegativeFloat = 0.01,
    has_value: bool = True,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """The same of images; see :func:`runner.networks.cnn.make_q_cnn` for ``convolutions`` and ``hidden``."""

    def make_trunk() -> FeatureCNN:
        trunk = make_cnn(FeatureCNN, spec, convolutions, hidden, normalize_observations)
        begin_orthogonal([*trunk.convolutions, *trunk.linears], math.sqrt(2))
        return trunk

    return _with_heads(spec, make_trunk, shared, log_std, policy_gain, has_value)


def _with_heads(
    spec: EnvSpec,
    make_trunk: Callable[[], Any],
    shared: bool,
    log_std: float,
    policy_gain: float,
    has_value: bool,
) -> dict[str, nn.Module]:
    distribution = stochastic(spec)
    trunk = make_trunk()
    policy = Headed(trunk, make_head(distribution, trunk.features, log_std), distribution)
    begin_orthogonal([policy.head], policy_gain)
    if not has_value:
        return {"policy": policy}
    value = Headed(trunk if shared else make_trunk(), Head(trunk.features, 1))
    begin_orthogonal([value.head], 1.0)
    return {"policy": policy, "value": value}


def begin_orthogonal(layers: Sequence[Any], last_gain: float) -> None:
    """Set weights and biases in place."""
    for layer in layers:
        nn.init.orthogonal_(layer.weight, last_gain if layer is layers[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)
