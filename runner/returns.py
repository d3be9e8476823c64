"""Return and target formulas, free of networks and optimizers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOSS_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
"""What ``types.LossFunction`` names."""


def discounts(gamma: float | Tensor, terminated: Tensor, steps: Tensor | None = None) -> Tensor:
    """What the value of the next state is worth: ``gamma ** steps``, and 0 where the episode terminated.

    Truncation is no termination and leaves the discount as it is. ``terminated`` and ``steps``: ``[B]``.
    """
    discount = gamma if steps is None else gamma**steps
    return torch.where(terminated, 0.0, discount)


def project(probabilities: Tensor, values: Tensor, v_min: float, v_max: float) -> Tensor:
    """A distribution over any values as one over ``K`` atoms, evenly spaced from ``v_min`` to ``v_max``.

    The probability of each value, taken to the nearer end where it lies beyond one, is shared between the two atoms
    around it, to each the more the nearer (Bellemare et al. 2017, algorithm 1). Of a value on an atom the printed form
    gives nothing to either; here the lower atom is never the last, and the upper one always the next.

    Args:
        probabilities: ``[..., K]``, of as many values as there are atoms.
        values: ``[..., K]``, in any order; or what becomes that by broadcasting.
    """
    probabilities, values = torch.broadcast_tensors(probabilities, values)
    last = probabilities.shape[-1] - 1
    places = ((values - v_min) * (last / (v_max - v_min))).clamp(0, last)  # counted in atoms
    return (_share_by_distance if places.is_cuda else _share_by_index)(probabilities, places)


def _share_by_index(probabilities: Tensor, places: Tensor) -> Tensor:
    """Far less work, but a GPU adds what meets at an atom in any order, and then no run is repeated to the bit."""
    lower = places.long().clamp(0, places.shape[-1] - 2)  # of what is no number, too
    upper_share = probabilities * (places - lower)
    found = torch.zeros_like(upper_share).scatter_add(-1, lower, probabilities - upper_share)
    return found.scatter_add(-1, lower + 1, upper_share)


def _share_by_distance(probabilities: Tensor, places: Tensor) -> Tensor:
    """The same, seen from the atoms: each takes ``1 - distance`` of what is less than one away."""
    atoms = torch.arange(places.shape[-1], dtype=places.dtype, device=places.device)
    shares = (1 - (places.unsqueeze(-1) - atoms).abs()).clamp(min=0)  # [..., value, atom]
    return (probabilities.unsqueeze(-1) * shares).sum(-2)


class Estimate(NamedTuple):
    """How much better than expected each action was, and what the value of its state should have been; ``[..., T]``."""

    advantage: Tensor
    value_target: Tensor


def backward_sum(addend: Tensor, factor: Tensor) -> Tensor:
    """``x_t = addend_t + factor_t * x_{t+1}`` with 0 after the end, along the last dimension: ``[..., T]``."""
    result = torch.empty_like(addend)
    following = torch.zeros_like(addend[..., 0])
    rows = zip(addend.unbind(-1), factor.unbind(-1), result.unbind(-1), strict=True)
    for one, weight, into in reversed(list(rows)):
        following = torch.addcmul(one, weight, following, out=into)
    return result


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lmbda: float
) -> Estimate:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), and the lambda-return that goes with it.

    All ``[..., T]``. ``next_value`` is of the step's own next observation, an episode's last one included: termination
    takes it away, truncation does not, and no sum goes on beyond an end of either kind.
    """
    delta = reward + discounts(gamma, terminated) * next_value - value
    advantage = backward_sum(delta, torch.where(done, 0.0, gamma * lmbda).to(delta.dtype))
    return Estimate(advantage, advantage + value)


def lambda_return(
    reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lmbda: float
) -> Tensor:
    """TD(lambda) targets ``[..., T]`` (Sutton & Barto 2018, eq. 12.20); after the last step the value stands in."""
    ends = done.clone()
    ends[..., -1] = True
    discount = discounts(gamma, terminated)
    mixed = torch.where(ends, 1.0, 1.0 - lmbda).to(reward.dtype)
    return backward_sum(reward + discount * mixed * next_value, discount * (1 - mixed))


def v_trace(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    log_ratio: Tensor,
    gamma: float,
    rho_max: float = 1.0,
    c_max: float = 1.0,
) -> Estimate:
    """V-trace (Espeholt et al. 2018, eq. 1 and section 4.2) for actions of another policy; all ``[..., T]``.

    Args:
        log_ratio: log-probability of each action now, less that under the policy that took it.
        rho_max, c_max: at which the ratios are cut.
    """
    ratio, discount = log_ratio.exp(), discounts(gamma, terminated)
    rho, c = ratio.clamp(max=rho_max), ratio.clamp(max=c_max)
    delta = rho * (reward + discount * next_value - value)
    correction = backward_sum(delta, torch.where(done, 0.0, gamma * c))
    target = value + correction
    following = torch.where(done, 0.0, torch.cat([correction[..., 1:], torch.zeros_like(correction[..., :1])], -1))
    return Estimate(rho * (reward + discount * (next_value + following) - value), target)


def returns_to_go(reward: Tensor, done: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Discounted sums of rewards to the end of the episode, and whether that end was seen; both ``[..., T]``."""
    within = torch.where(done, 0.0, gamma).to(reward.dtype)
    seen = done.flip(-1).cumsum(-1).flip(-1) > 0
    return backward_sum(reward, within), seen


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over all samples, ``[]``, of what is multiplied by importance weights, if there are any."""
    return values.mean() if weight is None else (values * weight).mean()


def normalized(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean 0 and deviation 1 over what counts of the samples; a single one becomes 0."""
    away = values - weighted_mean(values, weight)
    return away / (weighted_mean(away.square(), weight).sqrt() + 1e-8)


class NStep(NamedTuple):
    """An n-step transition: summed reward, index of its last row, and how many rewards it sums."""

    reward: Tensor
    last: Tensor
    steps: Tensor


def n_step(reward: Tensor, done: Tensor, rows: Tensor, n: int, gamma: float) -> NStep:
    """Sum up to ``n`` discounted rewards along ``rows``, stopping at the first one that is done.

    Args:
        reward, done: per stored row, ``[R]``.
        rows: the consecutive rows of each window, ``[B, n]``; -1 from where a window may not go on.

    Source: Sutton & Barto (2018), eq. 7.1; the bootstrap at ``last`` is left to the loss.
    """
    is_valid = rows >= 0
    rewards, ends = reward[rows.clamp(min=0)], done[rows.clamp(min=0)]
    ended_before = torch.cumsum(ends, dim=1) - ends.long()
    counts = is_valid & (ended_before == 0)  # [B, n]: a run of ones, then zeros
    weights = gamma ** torch.arange(n, dtype=reward.dtype, device=reward.device)
    steps = counts.sum(dim=1)
    last = rows.gather(1, (steps - 1).unsqueeze(1)).squeeze(1)
    return NStep((rewards * weights * counts).sum(dim=1), last, steps)
