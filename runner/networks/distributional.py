"""Networks that say of each action how likely each of a number of values is."""

from typing import Any

from torch import nn

from runner.distributions import ArgmaxOfMeans
from runner.networks.cnn import CNN, Convolution, make_cnn
from runner.networks.mlp import MLP, Activation
from runner.networks.normalizer import ObservationNormalizer
from runner.spec import EnvSpec
from runner.types import PositiveInt


def make_q_dist_network(
    spec: EnvSpec,
    hidden: list[PositiveInt],
    activation: Activation = "relu",
    n_atoms: PositiveInt = 51,
    v_min: float = -10.0,
    v_max: float = 10.0,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """A network ``q_dist`` of discrete actions, each with ``K`` log-probabilities: ``[B, *observation] -> [B, A * K]``.

    Args:
        n_atoms, v_min, v_max: how many values, evenly spaced between which.
        normalize_observations: each element by its running mean and variance, which are part of the network.
    """
    distribution = _distribution(spec, n_atoms, v_min, v_max)
    normalizer = ObservationNormalizer(spec.observation_shape) if normalize_observations else None
    return _named(MLP(spec.observation_shape, hidden, distribution.size, activation, normalizer), distribution)


def make_q_dist_cnn(
    spec: EnvSpec,
    convolutions: list[Convolution] | None = None,
    hidden: list[PositiveInt] | None = None,
    n_atoms: PositiveInt = 51,
    v_min: float = -10.0,
    v_max: float = 10.0,
    normalize_observations: bool = False,
) -> dict[str, nn.Module]:
    """The same of images; see :func:`runner.networks.cnn.make_q_cnn` for ``convolutions`` and ``hidden``."""
    distribution = _distribution(spec, n_atoms, v_min, v_max)
    return _named(make_cnn(CNN, spec, convolutions, hidden, normalize_observations, [distribution.size]), distribution)


def _distribution(spec: EnvSpec, n_atoms: int, v_min: float, v_max: float) -> ArgmaxOfMeans:
    if spec.num_actions is None:
        raise ValueError(f"action values need discrete actions; {spec.id} takes vectors of shape {spec.action_shape}")
    return ArgmaxOfMeans(spec.num_actions, n_atoms, v_min, v_max)


def _named(network: Any, distribution: ArgmaxOfMeans) -> dict[str, nn.Module]:
    network.distribution = distribution
    return {"q_dist": network}
