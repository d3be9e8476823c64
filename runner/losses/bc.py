"""The loss of behaviour cloning."""

from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import Distribution, outputs_of
from runner.spec import ACTION, IMPORTANCE_WEIGHT


class BCLoss:
    """How unlikely the policy finds the data's actions: ``-log pi(a_data | s)`` (Pomerleau 1991; maximum likelihood).

    One term, ``policy``, over a network ``policy`` whose outputs ``distribution`` understands; reads observation and
    action of a batch ``[B]``, and its importance weights if it has any; gives ``loss_policy`` (mean over the batch).
    """

    outputs: tuple[str, ...] = ()
    networks = ("policy",)
    stackable = True

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        self.hyper_parameters: dict[str, float | Tensor] = {}
        self.terms = {"policy": self.policy}

    def policy(
        self, networks: Mapping[str, Callable[..., Tensor]], batch: TensorDictBase, hyper_parameters: Mapping[str, Any]
    ) -> TensorDict:
        """The only term."""
        log_prob = self.distribution.log_prob(outputs_of(networks["policy"], batch), batch.get(ACTION))  # [B]
        weight = batch.get(IMPORTANCE_WEIGHT, None)
        log_prob = log_prob if weight is None else weight * log_prob
        return TensorDict({"loss_policy": -log_prob.mean()}, batch_size=[])
