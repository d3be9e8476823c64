"""How good each action of a collected batch was, by what networks say of its states."""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from runner import returns
from runner.distributions import Distribution, outputs_of
from runner.spec import (
    ACTION,
    ACTION_LOG_PROB,
    ADVANTAGE,
    IMPORTANCE_WEIGHT,
    MEMORY,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    OBSERVATION,
    STATE_VALUE,
    VALUE_TARGET,
)
from runner.types import Discount, Fraction, PositiveFloat

Networks = Mapping[str, Any]


class ValueEstimator:
    """Adds ``advantage``, ``value_target`` and ``state_value``, all ``[N, T]``, to a batch, by a network ``value``."""

    def __init__(self, networks: Networks, gamma: Discount) -> None:
        if "value" not in networks:
            raise ValueError(f"{type(self).__name__} needs a network called value; there are {', '.join(networks)}")
        self.networks, self.gamma = networks, gamma

    @torch.no_grad()
    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        value, next_value = values_of(self.networks["value"], batch)
        estimate = self._estimate(batch, value, next_value)
        batch.set(STATE_VALUE, value)
        batch.set(ADVANTAGE, estimate.advantage)
        batch.set(VALUE_TARGET, estimate.value_target)
        return batch

    def _estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> returns.Estimate:
        raise NotImplementedError


class GAE(ValueEstimator):
    """Generalized advantage estimation: see :func:`runner.returns.gae`."""

    def __init__(self, networks: Networks, gamma: Discount = 0.99, lmbda: Fraction = 0.95) -> None:
        super().__init__(networks, gamma)
        self.lmbda = lmbda

    def _estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> returns.Estimate:
        return returns.gae(*_rewards(batch, value, next_value), self.gamma, self.lmbda)


class TDLambda(ValueEstimator):
    """Lambda-returns as targets, and what they are more than the value as advantages."""

    def __init__(self, networks: Networks, gamma: Discount = 0.99, lmbda: Fraction = 0.95) -> None:
        super().__init__(networks, gamma)
        self.lmbda = lmbda

    def _estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> returns.Estimate:
        reward, _, following, terminated, done = _rewards(batch, value, next_value)
        target = returns.lambda_return(reward, following, terminated, done, self.gamma, self.lmbda)
        return returns.Estimate(target - value, target)


class VTrace(ValueEstimator):
    """V-trace, for batches that an older policy has played: see :func:`runner.returns.v_trace`."""

    def __init__(
        self,
        networks: Networks,
        distribution: Distribution,
        gamma: Discount = 0.99,
        rho_max: PositiveFloat = 1.0,
        c_max: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(networks, gamma)
        self.distribution, self.rho_max, self.c_max = distribution, rho_max, c_max

    def _estimate(self, batch: TensorDictBase, value: Tensor, next_value: Tensor) -> returns.Estimate:
        there = batch.to(device_of(self.networks["policy"]))
        now = self.distribution.log_prob(outputs_of(self.networks["policy"], there), there.get(ACTION))
        log_ratio = now.to(value.device) - batch.get(ACTION_LOG_PROB)
        return returns.v_trace(*_rewards(batch, value, next_value), log_ratio, self.gamma, self.rho_max, self.c_max)


class ReturnsToGo:
    """The return that each action led to, as advantage and as target; less the value, where there is a ``value``.

    An episode that is cut by a time limit goes on in its last value, or, where there is no ``value``, ends there.

    Steps of an episode whose end is not in the batch have a return that nobody knows: their importance weight is 0, and
    that of the others so much larger that the mean over the batch is a mean over these.
    """

    def __init__(self, networks: Networks, gamma: Discount = 0.99) -> None:
        self.networks, self.gamma = networks, gamma

    @torch.no_grad()
    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        network, reward, done = self.networks.get("value"), batch.get(NEXT_REWARD), batch.get(NEXT_DONE)
        value, next_value = (torch.zeros(()), None) if network is None else values_of(network, batch)
        if next_value is not None:
            is_cut = done & ~batch.get(NEXT_TERMINATED)
            reward = reward + torch.where(is_cut, self.gamma * next_value, 0.0)
        target, is_seen = returns.returns_to_go(reward, done, self.gamma)
        weight = is_seen.to(target.dtype)
        batch.set(IMPORTANCE_WEIGHT, weight / weight.mean().clamp(min=1 / weight.numel()))
        batch.set(VALUE_TARGET, target)
        batch.set(ADVANTAGE, target - value)
        return batch


def _rewards(batch: TensorDictBase, value: Tensor, next_value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return batch.get(NEXT_REWARD), value, next_value, batch.get(NEXT_TERMINATED), batch.get(NEXT_DONE)


def values_of(network: Any, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """What the states of a batch are worth, and those that followed them; ``[N, T]`` each, where the batch is."""
    place, home = device_of(network), batch.get(OBSERVATION).device
    observation, following = batch.get(OBSERVATION).to(place), batch.get(NEXT_OBSERVATION).to(place)
    if not getattr(network, "memory_size", 0):
        both = network(torch.stack([observation, following])).squeeze(-1).to(home)
        return both[0], both[1]
    value, after = network.step(observation.flatten(0, 1), batch.get(MEMORY).to(place).flatten(0, 1))
    next_value, _ = network.step(following.flatten(0, 1), after)
    return value.view(batch.batch_size).to(home), next_value.view(batch.batch_size).to(home)


def device_of(network: Any) -> torch.device:
    """Where a network is; the CPU for a function without parameters."""
    parameters = getattr(network, "parameters", lambda: iter(()))()
    return next((one.device for one in parameters), torch.device("cpu"))
