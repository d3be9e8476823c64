"""What states, and actions in them, are worth."""

from typing import Any

import torch
from torch import Tensor, nn, optim

from runner.learner.approximation import Approximation


class QNetwork(Approximation):
    """Values of discrete actions: ``q(states) -> [B, A]``, ``q(states, actions) -> [B]``; its target alike."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer | None = None, name: str = "q", **kwargs: Any
    ) -> None:
        super().__init__(model, optimizer, name=name, **kwargs)

    def forward(self, model: nn.Module, states: Tensor, actions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        values = model(states)
        return values if actions is None else values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


class VNetwork(Approximation):
    """Values of states: ``v(states) -> [B]``, by a model that gives ``[B, 1]``; its target alike."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer | None = None, name: str = "v", **kwargs: Any
    ) -> None:
        super().__init__(model, optimizer, name=name, **kwargs)

    def forward(self, model: nn.Module, states: Tensor) -> Tensor:  # type: ignore[override]
        return model(states).squeeze(-1)


class QContinuous(Approximation):
    """Values of actions that are vectors: ``q(states, actions) -> [B]``; its target alike.

    The model takes both as one vector, ``[B, S + A] -> [B, 1]``.
    """

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer | None = None, name: str = "q", **kwargs: Any
    ) -> None:
        super().__init__(model, optimizer, name=name, **kwargs)

    def forward(self, model: nn.Module, states: Tensor, actions: Tensor) -> Tensor:  # type: ignore[override]
        return model(torch.cat([states, actions], -1)).squeeze(-1)
