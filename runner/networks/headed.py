"""Networks put together from a trunk, which several may share, and a head of their own."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.distributions import Distribution, Normal
from runner.spec import OBSERVATION


class Headed(nn.Module):
    """A linear head over the features of a trunk: ``[...] -> [..., outputs]``.

    Args:
        trunk: gives features ``[..., features]``; a recurrent one has a ``memory_size``, ``in_keys`` and a ``step``.
        head: of the features.
        distribution: what the outputs mean, where the network chooses actions.
    """

    def __init__(self, trunk: Any, head: nn.Module, distribution: Distribution | None = None) -> None:
        super().__init__()
        self.trunk, self.head, self.distribution = trunk, head, distribution
        self.memory_size = int(getattr(trunk, "memory_size", 0))
        self.in_keys = getattr(trunk, "in_keys", (OBSERVATION,))

    def forward(self, *inputs: Tensor) -> Tensor:
        """What ``in_keys`` name, in their order."""
        return self.head(self.trunk(*inputs))

    def step(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a recurrent trunk: outputs ``[N, ...]`` and what to remember ``[N, memory_size]``."""
        features, after = self.trunk.step(observation, memory)
        return self.head(features), after

    @property
    def has_numpy(self) -> bool:
        """Whether :meth:`forward_numpy` can be used."""
        return bool(getattr(self.trunk, "has_numpy", False))

    def forward_numpy(self, observation: np.ndarray) -> np.ndarray:
        """The same on the CPU for one or a few float32 rows."""
        return self.head.forward_numpy(self.trunk.forward_numpy(observation))  # type: ignore[operator]


class Head(nn.Linear):
    """A linear layer over the features, or ``part`` of them, that numpy can compute as well."""

    part = slice(None)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features[..., self.part])

    def forward_numpy(self, features: np.ndarray) -> np.ndarray:
        return features[..., self.part] @ self.weight.detach().numpy().T + self.bias.detach().numpy()


class NormalHead(Head):
    """Means by the layer and logarithms of standard deviations that are the same everywhere: ``[..., 2 A]``."""

    def __init__(self, features: int, actions: int, log_std: float) -> None:
        super().__init__(features, actions)
        self.log_std = nn.Parameter(torch.full((actions,), log_std))

    def forward(self, features: Tensor) -> Tensor:
        mean = super().forward(features)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)

    def forward_numpy(self, features: np.ndarray) -> np.ndarray:
        mean = super().forward_numpy(features)
        return np.concatenate([mean, np.broadcast_to(self.log_std.detach().numpy(), mean.shape)], -1)


def make_head(distribution: Any, features: int, log_std: float) -> Head:
    """The head of a policy."""
    if isinstance(distribution, Normal):
        return NormalHead(features, distribution.size // 2, log_std)
    return Head(features, distribution.size)
