"""The loss of deep Q-learning."""

from collections.abc import Callable, Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import masked
from runner.returns import LOSS_FUNCTIONS, discounts
from runner.spec import (
    ACTION,
    IMPORTANCE_WEIGHT,
    NEXT_ACTION_MASK,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TD_ERROR,
)
from runner.types import LossFunction


class DQNLoss:
    """Temporal-difference error of action values: ``q(s, a) - (r + gamma^n * q_target(s', a'))``.

    Plain (Mnih et al. 2015): ``a'`` maximizes the target network. Double (van Hasselt et al. 2016, eq. 4): ``a'``
    maximizes the online network. One term, ``q``; reads observation, action and next (observation, reward, terminated,
    steps) of a batch ``[B]``, and its importance weights and which next actions can be taken if it has any; gives
    ``loss_q`` (mean over the batch, of what is multiplied by the weights) and ``td_error`` ``[B]`` (absolute).

    Args:
        gamma: discount of one env step.
        double: choose the next action by the online network.
        loss_function: ``l2`` (mean squared error) or ``smooth_l1`` (Huber with threshold 1).
    """

    networks = ("q",)
    targets = ("q",)
    outputs = (TD_ERROR,)
    stackable = True

    def __init__(self, gamma: float, double: bool, loss_function: LossFunction) -> None:
        self.hyper_parameters: dict[str, float | Tensor] = {"gamma": gamma}
        self.double = double
        self._function = LOSS_FUNCTIONS[loss_function]
        self.terms = {"q": self.q}

    def q(
        self,
        networks: Mapping[str, Callable[[Tensor], Tensor]],
        batch: TensorDictBase,
        hyper_parameters: Mapping[str, float | Tensor],
    ) -> TensorDict:
        """The only term; gradients flow into ``networks["q"]`` alone, never into the regression target."""
        return self._losses(networks["q"](batch.get(OBSERVATION)), networks, batch, hyper_parameters)

    def _losses(
        self,
        values: Tensor,
        networks: Mapping[str, Callable[[Tensor], Tensor]],
        batch: TensorDictBase,
        hyper_parameters: Mapping[str, float | Tensor],
    ) -> TensorDict:
        """What the term gives, from the ``values`` ``[B, A]`` of the batch's observations."""
        action = batch.get(ACTION).unsqueeze(-1)
        chosen = values.gather(-1, action).squeeze(-1)  # [B]
        with torch.no_grad():
            target = self._target(networks, batch, hyper_parameters["gamma"])
        if target.shape != chosen.shape:  # [B, 1] against [B] would broadcast to [B, B]
            raise ValueError(
                f"reward, terminated and steps must have the shape of the action, {list(chosen.shape)}; "
                f"the regression target has {list(target.shape)}"
            )
        loss = self._mean(chosen, target, batch.get(IMPORTANCE_WEIGHT, None))
        return TensorDict({"loss_q": loss, TD_ERROR: (chosen.detach() - target).abs()}, batch_size=[])

    def _mean(self, chosen: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return self._function(chosen, target)
        if weight.shape != chosen.shape:
            raise ValueError(f"{IMPORTANCE_WEIGHT} must have the shape {list(chosen.shape)}, not {list(weight.shape)}")
        return (weight * self._function(chosen, target, reduction="none")).mean()

    def _target(
        self, networks: Mapping[str, Callable[[Tensor], Tensor]], batch: TensorDictBase, gamma: float | Tensor
    ) -> Tensor:
        following, mask = batch.get(NEXT_OBSERVATION), batch.get(NEXT_ACTION_MASK, None)

        def values_by(name: str) -> Tensor:
            """``[B, A]``; of actions that cannot be taken, so little that none is the best."""
            values = networks[name](following)
            return values if mask is None else masked(values, mask)

        values = values_by("q_target")
        if self.double:
            best = values_by("q").argmax(-1, keepdim=True)
            value = values.gather(-1, best).squeeze(-1)
        else:
            value = values.amax(-1)
        discount = discounts(gamma, batch.get(NEXT_TERMINATED), batch.get(NEXT_STEPS, None))
        return batch.get(NEXT_REWARD) + discount * value
