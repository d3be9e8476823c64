"""The losses of the soft actor-critic."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import TanhNormal, outputs_of
from runner.losses.td3 import bootstrapped, normal_like, regression
from runner.spec import ACTION, NEXT_OBSERVATION, OBSERVATION, TD_ERROR, Stage
from runner.types import Discount

Networks = Mapping[str, Callable[..., Any]]

NOISE, NEXT_NOISE = ("noise", "action"), ("noise", "next_action")
LOG_PROB = "policy_log_prob"
"""Of the action that the policy took in the actor's term, for each sample."""


class SACLoss:
    """Terms ``critic``, ``actor`` and ``alpha`` of Haarnoja et al. (2018b), algorithm 1.

    ``critic`` (eq. 5 and 6): half the squared error of each value to ``r + gamma^n * (min_i q_target_i(s', a') -
    alpha * log pi(a'|s'))``; gives ``td_error`` ``[B]`` (absolute, mean over the ensemble). ``actor`` (eq. 9):
    ``alpha * log pi(a|s) - min_i q_i(s, a)``; gives the log-densities, so that ``alpha`` (eq. 18, over ``log
    alpha`` as in the authors' code) needs no pass of its own. Densities are of actions scaled to ``[-1, 1]``.

    Args:
        distribution: of the policy.
        target_entropy: ``None`` for minus the number of elements of an action.
        learn_alpha: else it stays what the network began with.
    """

    targets = ("q",)
    outputs = (TD_ERROR, LOG_PROB)
    stackable = True

    def __init__(
        self,
        distribution: TanhNormal,
        gamma: Discount = 0.99,
        target_entropy: float | None = None,
        learn_alpha: bool = True,
    ) -> None:
        if not hasattr(distribution, "sample_with_log_prob"):
            kind = type(distribution).__name__
            raise ValueError(f"loss: SACLoss needs a policy that is a squashed normal distribution, not {kind}")
        self.distribution = distribution
        entropy = -float(distribution.noise_size) if target_entropy is None else target_entropy
        self.hyper_parameters: dict[str, float | Tensor] = {"gamma": gamma, "target_entropy": entropy}
        self.terms: dict[str, Callable[..., TensorDict]] = {"critic": self.critic, "actor": self.actor}
        self.stages = {"critic": Stage(("critic",), ("q",)), "actor": Stage(("actor",), ("policy",))}
        if learn_alpha:
            self.terms["alpha"] = self.alpha
            self.stages["alpha"] = Stage(("alpha",), ("log_alpha",))

    def draw(self, batch: TensorDictBase, generator: torch.Generator) -> dict[Any, Tensor]:
        """Standard normal noise for each next action and for each present one."""
        action = batch.get(ACTION)
        return {NEXT_NOISE: normal_like(action, generator), NOISE: normal_like(action, generator)}

    def critic(
        self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> TensorDict:
        """Gradients flow into ``networks["q"]`` alone."""
        with torch.no_grad():
            following = outputs_of(networks["policy"], batch.get("next"))
            action, log_prob = self.distribution.sample_with_log_prob(following, batch.get(NEXT_NOISE))
            value = networks["q_target"](batch.get(NEXT_OBSERVATION), action).amin(0)
            value = value - networks["log_alpha"]().exp() * log_prob
            target = bootstrapped(batch, value, hyper_parameters["gamma"])
        loss, td_error = regression(networks["q"](batch.get(OBSERVATION), batch.get(ACTION)), target, batch)
        return TensorDict({"loss_critic": 0.5 * loss, TD_ERROR: td_error}, batch_size=[])

    def actor(
        self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> TensorDict:
        """Gradients are meant for ``networks["policy"]``, by way of the action and of its density."""
        outputs = outputs_of(networks["policy"], batch)
        action, log_prob = self.distribution.sample_with_log_prob(outputs, batch.get(NOISE))
        alpha = networks["log_alpha"]().detach().exp()
        value = networks["q"](batch.get(OBSERVATION), action).amin(0)
        loss, log_prob_now = (alpha * log_prob - value).mean(), log_prob.detach()
        entropy = {"entropy": -log_prob_now.mean(), "alpha": alpha}
        return TensorDict({"loss_actor": loss, LOG_PROB: log_prob_now, **entropy}, batch_size=[])

    def alpha(
        self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> TensorDict:
        """Rises while the entropy is below its target; looks at the actor's term, if that was evaluated just before."""
        log_prob = batch.get(LOG_PROB, None)
        if log_prob is None:
            with torch.no_grad():
                outputs = outputs_of(networks["policy"], batch)
                log_prob = self.distribution.sample_with_log_prob(outputs, batch.get(NOISE))[1]
        missing = hyper_parameters["target_entropy"] + log_prob.mean()
        return TensorDict({"loss_alpha": -networks["log_alpha"]() * missing}, batch_size=[])
