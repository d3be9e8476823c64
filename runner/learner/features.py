"""Features that several heads share, moved by one backward pass for all of them."""

from typing import Any

import torch
from torch import Tensor, nn, optim

from runner.learner.approximation import WITH_WAITING_FEATURES, Approximation
from runner.spec import CheckpointError, StateDict


class FeatureNetwork(Approximation):
    """What it says of its inputs are leaves of the graph: heads that learn leave their gradients on them.

    ``reinforce()``, called when all heads have learnt, takes what has come together back through the network, all calls
    at once. Calls that no gradient has reached are skipped; those within ``no_grad()`` leave nothing behind.
    """

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer | None = None, name: str = "feature", **kwargs: Any
    ) -> None:
        super().__init__(model, optimizer, name=name, **kwargs)
        self._calls: list[tuple[Tensor, Tensor]] = []

    def __call__(self, *inputs: Any) -> Tensor:
        output = super().__call__(*inputs)
        if not (torch.is_grad_enabled() and output.requires_grad):
            return output
        features = output.detach().requires_grad_()
        self._calls.append((output, features))
        WITH_WAITING_FEATURES.add(self)
        return features

    def waiting(self) -> list[Tensor]:
        """The features of all calls since the last ``reinforce()``."""
        return [features for _, features in self._calls]

    def reinforce(self) -> "FeatureNetwork":  # type: ignore[override]
        """Move the weights by the gradients that have come together, and begin anew; by none, nothing is moved."""
        self._own_optimization()
        # Its gradients are those of a backward pass from the outputs, to the bit: each is multiplied by one.
        pulls = [(output * features.grad).sum() for output, features in self._calls if features.grad is not None]
        self._forget()
        if pulls:
            self._descend(pulls[0] if len(pulls) == 1 else torch.stack(pulls).sum(), {})
        return self

    def zero_grad(self) -> "FeatureNetwork":
        """Forget gradients that a backward pass has left, and the calls that it went through."""
        self._forget()
        super().zero_grad()
        return self

    def _forget(self) -> None:
        self._calls = []
        WITH_WAITING_FEATURES.discard(self)

    def state_dict(self) -> StateDict:
        if any(features.grad is not None for features in self.waiting()):
            raise CheckpointError(f"gradients wait for {self.name}.reinforce(), and cannot be saved: call it first")
        return super().state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self._forget()
        super().load_state_dict(state)
