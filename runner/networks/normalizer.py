"""Observations brought to mean 0 and variance 1 by statistics that are part of the network."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

LARGEST = 10.0
"""In standard deviations: an observation further from the mean counts as this far."""


class ObservationNormalizer(nn.Module):
    """``(x - mean) / std``, at most 10 in size; the identity (so limited) until it has observed something.

    The statistics are buffers, so that whoever copies, saves, sends or exports the network has them. Using the network
    never changes them: :meth:`observe` does, which one learning hook calls once for each collected batch, on the
    network and its targets alike. They are merged batch by batch in float64 (Chan, Golub & LeVeque 1983, eq. 2.1).

    Args:
        shape: of the statistics: of an observation, or ``()`` for one mean and variance of all its elements.
    """

    constant_buffers = True
    """Read by what records updates: a forward pass changes no buffer, so that they can be inputs of a program."""

    count: Tensor
    mean: Tensor
    squares: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(shape, dtype=torch.float64))  # of the distances from the mean
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, observation: Tensor) -> Tensor:
        """``[..., *shape] -> [..., *shape]``, float32."""
        return ((observation - self.shift) * self.scale).clamp(-LARGEST, LARGEST)

    def forward_numpy(self, observation: np.ndarray) -> np.ndarray:
        """The same for a float32 array, to the bit."""
        x = observation - self.shift.numpy()
        x *= self.scale.numpy()
        return np.clip(x, -LARGEST, LARGEST, out=x)

    @torch.no_grad()
    def observe(self, observations: Tensor) -> None:
        """Take ``[..., *shape]`` into the statistics, in place."""
        rows = observations.to(self.mean.device, torch.float64).reshape(-1, *self.mean.shape)
        if not len(rows):
            return
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        total = self.count + len(rows)
        distance = mean - self.mean
        self.squares += squares + distance.square() * (self.count * len(rows) / total)
        self.mean += distance * (len(rows) / total)
        self.count.copy_(total)
        self._derive()

    def _derive(self) -> None:
        """What a forward pass needs, in float32; an element that never changes is only shifted."""
        deviation = (self.squares / self.count).sqrt()
        # Rounding leaves a constant a deviation of a few times 1e-16 of its size.
        is_constant = deviation <= 1e-7 * self.mean.abs().clamp(min=1e-7)
        self.shift.copy_(self.mean)
        self.scale.copy_(torch.where(is_constant, 1.0, 1.0 / deviation))
