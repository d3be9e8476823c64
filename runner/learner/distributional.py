"""An approximation of distributions over values, usable alone."""

from typing import Any

import torch
from torch import Tensor, nn, optim

from runner.distributions import ArgmaxOfMeans
from runner.learner.approximation import Approximation
from runner.returns import project


class QDist(Approximation):
    """How likely each of ``K`` values of each action is: ``q(states) -> [B, A, K]``, ``q(states, actions) -> [B, K]``.

    The target gives the same. An end is what has no value after it: ``project(dist, reward + discount * q.atoms)`` with
    a discount of 0, whatever the atoms are (Bellemare et al. 2017, algorithm 1).

    Args:
        model: ``[B, ...] -> [B, n_actions * n_atoms]``, unnormalized log-probabilities.
        v_min, v_max: the lowest and the highest value, between which the others are evenly spaced.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | None,
        n_actions: int,
        n_atoms: int,
        v_min: float,
        v_max: float,
        name: str = "q_dist",
        **kwargs: Any,
    ) -> None:
        self.distribution = ArgmaxOfMeans(n_actions, n_atoms, v_min, v_max)
        super().__init__(model, optimizer, name=name, **kwargs)

    def forward(self, model: nn.Module, states: Tensor, actions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if actions is not None:
            return self.distribution.log_probs(model(states), actions).exp()
        return torch.softmax(self.distribution.by_action(model(states)), -1)

    @property
    def atoms(self) -> Tensor:
        """The values ``[K]``, where the model is."""
        return self.distribution.atoms_like(next(self.model.parameters()))

    def log_probs(self, states: Tensor, actions: Tensor) -> Tensor:
        """``[B, K]``, with gradients: for a cross-entropy."""
        return self.distribution.log_probs(self.model(states), actions)

    def values(self, states: Tensor) -> Tensor:
        """The means ``[B, A]``."""
        return self.distribution.means(self.model(states))

    def project(self, dist: Tensor, support: Tensor) -> Tensor:
        """Probabilities ``[..., K]`` of any values ``[..., K]`` as those of the atoms."""
        return project(dist, support, self.distribution.v_min, self.distribution.v_max)
