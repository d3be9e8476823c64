"""Networks for actions that are vectors: a policy, an ensemble of action values, and a temperature."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runner.distributions import TanhDeterministic, TanhNormal, bounds
from runner.networks.ensemble import QEnsemble
from runner.networks.mlp import MLP, Activation
from runner.spec import EnvSpec
from runner.types import PositiveFloat, PositiveInt


class Temperature(nn.Module):
    """One positive number, learned as its logarithm, ``[]``."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        """The logarithm."""
        return self.log


def make_stochastic_policy_and_values(
    spec: EnvSpec,
    hidden: list[PositiveInt],
    activation: Activation,
    members: PositiveInt = 2,
    temperature: PositiveFloat = 1.0,
) -> dict[str, nn.Module]:
    """A ``policy`` that is a squashed normal distribution, values ``q``, and the ``log_alpha`` of its entropy.

    Args:
        members: of the ensemble of values.
        temperature: what it begins with.
    """
    distribution = TanhNormal(*_vectors(spec))
    return {
        "policy": _policy(spec, hidden, activation, distribution),
        "q": _values(spec, hidden, activation, members),
        "log_alpha": Temperature(temperature),
    }


def make_deterministic_policy_and_values(
    spec: EnvSpec, hidden: list[PositiveInt], activation: Activation, members: PositiveInt = 2
) -> dict[str, nn.Module]:
    """A ``policy`` that gives one action within the bounds, and an ensemble of values ``q``."""
    distribution = TanhDeterministic(*_vectors(spec))
    return {
        "policy": _policy(spec, hidden, activation, distribution),
        "q": _values(spec, hidden, activation, members),
    }


def _vectors(spec: EnvSpec) -> Any:
    if spec.num_actions is None and len(spec.action_shape) != 1:
        raise ValueError(f"{spec.id} takes actions of shape {list(spec.action_shape)}, where vectors are needed")
    return bounds(spec)


def _policy(spec: EnvSpec, hidden: Sequence[int], activation: Activation, distribution: Any) -> MLP:
    policy = MLP(spec.observation_shape, hidden, distribution.size, activation)
    policy.distribution = distribution
    return policy


def _values(spec: EnvSpec, hidden: Sequence[int], activation: Activation, members: int) -> QEnsemble:
    inputs = math.prod(spec.observation_shape) + spec.action_shape[0]
    return QEnsemble(inputs, hidden, activation, members)
