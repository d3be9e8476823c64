"""The loss of advantage actor-critic, which is that of REINFORCE where the advantages are returns."""

from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import outputs_of, policy_and_value
from runner.returns import LOSS_FUNCTIONS, normalized, weighted_mean
from runner.spec import ACTION, ADVANTAGE, IMPORTANCE_WEIGHT, VALUE_TARGET
from runner.types import Discount, LossFunction, NonNegativeFloat


class A2CLoss:
    """``-log pi(a|s) * advantage`` (Mnih et al. 2016, section 4; Williams 1992), less entropy, plus the value's error.

    One term, ``a2c``, over networks ``policy`` and, where there is one, ``value``; reads a batch ``[...]`` with
    observation, action, ``advantage``, ``value_target``, and importance weights if it has any. Gives ``loss_policy``,
    ``loss_entropy``, ``loss_value`` with a ``value``, and the scalar ``entropy``.

    Args:
        distribution: what the outputs of ``policy`` mean.
        gamma: for the estimator of advantages to refer to, as ``${loss.gamma}``.
        entropy_coeff, critic_coeff: factors of entropy and value loss.
        normalize_advantage: to mean 0 and deviation 1 over what counts of the sub-batch.
    """

    networks = ("policy",)
    inputs = (ADVANTAGE,)
    losses = ("policy", "value", "entropy")
    targets = ()
    outputs = ()
    stackable = True

    def __init__(
        self,
        distribution: Any,
        gamma: Discount = 0.99,
        entropy_coeff: NonNegativeFloat = 0.01,
        critic_coeff: NonNegativeFloat = 0.5,
        value_loss: LossFunction = "l2",
        normalize_advantage: bool = False,
    ) -> None:
        self.distribution, self.normalize_advantage = distribution, normalize_advantage
        self.hyper_parameters: dict[str, Any] = {"entropy_coeff": entropy_coeff, "critic_coeff": critic_coeff}
        self._function = LOSS_FUNCTIONS[value_loss]
        self.terms = {"a2c": self.a2c}

    def a2c(
        self, networks: Mapping[str, Callable[..., Tensor]], batch: TensorDictBase, hyper_parameters: Mapping[str, Any]
    ) -> TensorDict:
        """The only term."""
        weight, value = batch.get(IMPORTANCE_WEIGHT, None), None
        if "value" in networks:
            outputs, value = policy_and_value(networks, batch)
        else:
            outputs = outputs_of(networks["policy"], batch)
        log_prob = self.distribution.log_prob(outputs, batch.get(ACTION))
        advantage = batch.get(ADVANTAGE)
        if self.normalize_advantage:
            advantage = normalized(advantage, weight)
        entropy = weighted_mean(self.distribution.entropy(outputs), weight)
        losses = {
            "loss_policy": -weighted_mean(log_prob * advantage, weight),
            "loss_entropy": -hyper_parameters["entropy_coeff"] * entropy,
        }
        if value is not None:
            error = self._function(value, batch.get(VALUE_TARGET), reduction="none")
            losses["loss_value"] = hyper_parameters["critic_coeff"] * weighted_mean(error, weight)
        return TensorDict({**losses, "entropy": entropy.detach()}, batch_size=[])
