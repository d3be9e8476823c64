"""Features that wait for gradients: leaves of the graph, which the losses of several heads may reach.

They are known to every optimization, so that a head needs no word of where its inputs come from.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from torch import Tensor

NETWORKS: WeakSet[Any] = WeakSet()
"""Those with ``waiting`` features."""


def features_that_wait() -> list[Tensor]:
    """Leaves that a loss may have gradients for, besides what its own optimization moves."""
    return [feature for network in NETWORKS for feature in network.waiting()]


def leave_on(features: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those that other heads have left there."""
    for feature, gradient in zip(features, gradients, strict=True):
        if gradient is not None:
            feature.grad = gradient if feature.grad is None else feature.grad + gradient
