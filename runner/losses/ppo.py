"""The loss of proximal policy optimization."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import policy_and_value
from runner.returns import LOSS_FUNCTIONS, normalized, weighted_mean
from runner.spec import (
    ACTION,
    ACTION_LOG_PROB,
    ADVANTAGE,
    IMPORTANCE_WEIGHT,
    KL,
    POLICY_OUTPUT,
    STATE_VALUE,
    VALUE_TARGET,
)
from runner.types import Discount, LossFunction, NonNegativeFloat, PositiveFloat

Kind = Literal["clip", "kl_penalty"]


class PPOLoss:
    """A bounded step of the policy towards actions with advantages, and of the value towards its target.

    ``clip`` (Schulman et al. 2017, eq. 7): ratios of probabilities count up to ``1 +- clip_epsilon``. ``kl_penalty``
    (eq. 8): ``beta`` times the divergence from the policy that played is added, exactly, from its recorded outputs.

    One term, ``ppo``, over networks ``policy`` and ``value``; reads a batch ``[...]`` with observation, action,
    ``action_log_prob``, ``advantage``, ``value_target``, and importance weights if it has any (``policy_output`` for
    the penalty, ``state_value`` to clip values). Gives ``loss_policy``, ``loss_value``, ``loss_entropy``, the scalars
    ``approx_kl`` and ``clip_fraction``, and ``kl`` ``[...]``: ``(r - 1) - log r`` of each action (Schulman 2020),
    whose mean estimates the divergence.

    Args:
        distribution: what the outputs of ``policy`` mean.
        gamma: for the estimator of advantages to refer to, as ``${loss.gamma}``.
        entropy_coeff, critic_coeff: factors of entropy and value loss.
        clip_value: also keep values within ``clip_epsilon`` of the old ones where that is worse.
        normalize_advantage: to mean 0 and deviation 1 over the sub-batch.
        beta: factor of the divergence, to begin with; see ``hooks.adaptive_kl``.
    """

    networks = ("policy", "value")
    losses = ("policy", "value", "entropy")
    targets = ()
    outputs = (KL,)
    stackable = True

    def __init__(
        self,
        distribution: Any,
        gamma: Discount = 0.99,
        kind: Kind = "clip",
        clip_epsilon: PositiveFloat = 0.2,
        entropy_coeff: NonNegativeFloat = 0.01,
        critic_coeff: NonNegativeFloat = 0.5,
        value_loss: LossFunction = "l2",
        clip_value: bool = False,
        normalize_advantage: bool = True,
        beta: NonNegativeFloat = 1.0,
    ) -> None:
        self.distribution, self.kind, self.clip_value = distribution, kind, clip_value
        self.normalize_advantage = normalize_advantage
        self.hyper_parameters: dict[str, Any] = {
            "clip_epsilon": clip_epsilon,
            "entropy_coeff": entropy_coeff,
            "critic_coeff": critic_coeff,
            "beta": torch.tensor(float(beta)),
        }
        self._function = LOSS_FUNCTIONS[value_loss]
        self.terms = {"ppo": self.ppo}
        more = (POLICY_OUTPUT,) * (kind == "kl_penalty") + (STATE_VALUE,) * clip_value
        self.inputs = (ACTION_LOG_PROB, ADVANTAGE, VALUE_TARGET, *more)

    def ppo(
        self, networks: Mapping[str, Callable[..., Tensor]], batch: TensorDictBase, hyper_parameters: Mapping[str, Any]
    ) -> TensorDict:
        """The only term."""
        epsilon = hyper_parameters["clip_epsilon"]
        outputs, value = policy_and_value(networks, batch)
        log_ratio = self.distribution.log_prob(outputs, batch.get(ACTION)) - batch.get(ACTION_LOG_PROB)
        ratio = log_ratio.exp()
        advantage, weight = batch.get(ADVANTAGE), batch.get(IMPORTANCE_WEIGHT, None)
        if self.normalize_advantage:
            advantage = normalized(advantage, weight)
        with torch.no_grad():
            kl = (ratio - 1) - log_ratio
            clipped = ((ratio - 1).abs() > epsilon).float().mean()
        if self.kind == "clip":
            gain = weighted_mean(
                torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage), weight
            )
        else:
            divergence = weighted_mean(self.distribution.kl(batch.get(POLICY_OUTPUT), outputs), weight)
            gain = weighted_mean(ratio * advantage, weight) - hyper_parameters["beta"].to(ratio.device) * divergence
        entropy = weighted_mean(self.distribution.entropy(outputs), weight)
        losses = {
            "loss_policy": -gain,
            "loss_value": hyper_parameters["critic_coeff"] * self._value_loss(value, batch, epsilon),
            "loss_entropy": -hyper_parameters["entropy_coeff"] * entropy,
        }
        told = {"approx_kl": kl.mean(), "clip_fraction": clipped, "entropy": entropy.detach(), KL: kl}
        return TensorDict({**losses, **told}, batch_size=[])

    def _value_loss(self, value: Tensor, batch: TensorDictBase, epsilon: float) -> Tensor:
        target = batch.get(VALUE_TARGET)
        if value.shape != target.shape:  # [B, 1] against [B] would broadcast to [B, B]
            raise ValueError(f"values {list(value.shape)} and their targets {list(target.shape)} differ in shape")
        weight = batch.get(IMPORTANCE_WEIGHT, None)
        error = self._function(value, target, reduction="none")
        if not self.clip_value:
            return weighted_mean(error, weight)
        old = batch.get(STATE_VALUE)
        near = old + (value - old).clamp(-epsilon, epsilon)
        return weighted_mean(torch.max(error, self._function(near, target, reduction="none")), weight)
