"""The loss of conservative Q-learning, for discrete actions."""

from collections.abc import Callable, Mapping

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import masked
from runner.losses.dqn import DQNLoss
from runner.spec import ACTION, ACTION_MASK, IMPORTANCE_WEIGHT
from runner.types import Discount, LossFunction, NonNegativeFloat


class CQLLoss(DQNLoss):
    """CQL(H) (Kumar et al. 2020, eq. 4): ``alpha * (log sum_a exp q(s, a) - q(s, a_data))`` beside the parent's loss.

    It pushes down what the data does not show, of actions that can be taken. Reads and gives what the parent does,
    and ``loss_conservative`` (mean over the batch), ``alpha`` included. Eq. 4 has half of a squared error, which
    ``smooth_l1`` is for errors up to 1; ``l2`` has the whole of it.

    Args:
        alpha: how much that counts; 0 is the parent.
    """

    losses = ("q", "conservative")

    def __init__(
        self,
        gamma: Discount = 0.99,
        double: bool = True,
        loss_function: LossFunction = "smooth_l1",
        alpha: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__(gamma, double, loss_function)
        self.hyper_parameters["alpha"] = alpha

    def _losses(
        self,
        values: Tensor,
        networks: Mapping[str, Callable[[Tensor], Tensor]],
        batch: TensorDictBase,
        hyper_parameters: Mapping[str, float | Tensor],
    ) -> TensorDict:
        losses = super()._losses(values, networks, batch, hyper_parameters)
        chosen = values.gather(-1, batch.get(ACTION).unsqueeze(-1)).squeeze(-1)
        mask = batch.get(ACTION_MASK, None)
        gap = (values if mask is None else masked(values, mask)).logsumexp(-1) - chosen  # [B]
        weight = batch.get(IMPORTANCE_WEIGHT, None)
        gap = gap if weight is None else weight * gap
        return losses.set("loss_conservative", hyper_parameters["alpha"] * gap.mean())
