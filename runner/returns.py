"""Return and target formulas, free of networks and optimizers."""

from typing import NamedTuple

import torch
from torch import Tensor


def discounts(gamma: float | Tensor, terminated: Tensor, steps: Tensor | None = None) -> Tensor:
    """What the value of the next state is worth: ``gamma ** steps``, and 0 where the episode terminated.

    Truncation is no termination and leaves the discount as it is. ``terminated`` and ``steps``: ``[B]``.
    """
    discount = gamma if steps is None else gamma**steps
    return torch.where(terminated, 0.0, discount)


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
