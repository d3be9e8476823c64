"""The loss of distributional deep Q-learning with fixed atoms."""

from collections.abc import Callable, Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import ArgmaxOfMeans, Distribution, masked
from runner.returns import discounts, project, weighted_mean
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
from runner.types import Discount

Networks = Mapping[str, Callable[[Tensor], Tensor]]


class C51Loss:
    """Cross-entropy between the projected distribution of ``r + gamma^n * Z(s', a')`` and that of ``Z(s, a)``.

    ``a'`` has the largest mean by the target network (Bellemare et al. 2017, algorithm 1), or, double, by the online
    one (van Hasselt et al. 2016), and its distribution is the target network's. One term, ``q_dist``; reads
    observation, action and next (observation, reward, terminated, steps) of a batch ``[B]``, and its importance weights
    and which next actions can be taken if it has any; gives ``loss_q_dist`` (mean over the batch, of what is multiplied
    by the weights), ``td_error`` ``[B]``: the divergence, which is 0 where nothing is left to learn (Hessel et al.
    2018, section 4.1), and ``beyond_ends``: by how much returns are taken to the ends in the mean, 0 where they fit.

    Args:
        distribution: what the outputs of the network mean.
        gamma: discount of one env step.
        double: choose the next action by the online network.
    """

    networks = ("q_dist",)
    targets = ("q_dist",)
    outputs = (TD_ERROR,)
    stackable = True

    def __init__(self, distribution: Distribution, gamma: Discount = 0.99, double: bool = True) -> None:
        if not isinstance(distribution, ArgmaxOfMeans):
            raise ValueError(
                "loss: it learns distributions over values, and this network says none: network=q_dist, or q_dist_cnn"
            )
        self.hyper_parameters: dict[str, float | Tensor] = {"gamma": gamma}
        self.distribution, self.double = distribution, double
        self.terms = {"q_dist": self.q_dist}

    def q_dist(
        self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> TensorDict:
        """The only term; gradients flow into ``networks["q_dist"]`` alone, never into the target distribution."""
        log_probs = self.distribution.log_probs(networks["q_dist"](batch.get(OBSERVATION)), batch.get(ACTION))
        with torch.no_grad():
            target, beyond = self._target(networks, batch, hyper_parameters["gamma"])
        if target.shape != log_probs.shape:  # [B, 1] against [B] would broadcast to [B, B]
            raise ValueError(
                f"reward, terminated and steps must have the shape of the action, {list(log_probs.shape[:-1])}; "
                f"the target distribution has {list(target.shape[:-1])}"
            )
        cross_entropy = -(target * log_probs).sum(-1)  # [B]
        weight = batch.get(IMPORTANCE_WEIGHT, None)
        if weight is not None and weight.shape != cross_entropy.shape:
            raise ValueError(
                f"{IMPORTANCE_WEIGHT} must have the shape {list(cross_entropy.shape)}, not {list(weight.shape)}"
            )
        divergence = (torch.xlogy(target, target).sum(-1) + cross_entropy.detach()).clamp(min=0)  # less by rounding
        losses = {"loss_q_dist": weighted_mean(cross_entropy, weight), TD_ERROR: divergence, "beyond_ends": beyond}
        return TensorDict(losses, batch_size=[])

    def _target(self, networks: Networks, batch: TensorDictBase, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities ``[B, K]`` of the atoms, and how far beyond the ends what they stand for lies, ``[]``."""
        following, own = batch.get(NEXT_OBSERVATION), self.distribution
        outputs = networks["q_dist_target"](following)
        means = own.means(networks["q_dist"](following) if self.double else outputs)
        mask = batch.get(NEXT_ACTION_MASK, None)
        best = (means if mask is None else masked(means, mask)).argmax(-1)
        probabilities = own.log_probs(outputs, best).exp()
        discount = discounts(gamma, batch.get(NEXT_TERMINATED), batch.get(NEXT_STEPS, None)).to(probabilities.dtype)
        reward = batch.get(NEXT_REWARD).unsqueeze(-1)
        values = reward + discount.unsqueeze(-1) * own.atoms_like(probabilities)
        beyond = (probabilities * (values - values.clamp(own.v_min, own.v_max)).abs()).sum(-1).mean()
        return project(probabilities, values, own.v_min, own.v_max), beyond
