"""Features that several heads share, moved by one backward pass for all of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from runner.learner.approximation import Approximation
from runner.learner.optimization import Losses, Optimization
from runner.learner.shared import NETWORKS
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
        NETWORKS.add(self)
        return features

    def waiting(self) -> list[Tensor]:
        """The features of all calls since the last ``reinforce()``."""
        return [features for _, features in self._calls]

    def reinforce(self) -> "FeatureNetwork":  # type: ignore[override]
        """Move the weights by the gradients that have come together; by none, nothing is moved."""
        self._own_optimization()
        loss = self.pull()
        if loss is not None:
            self._descend(loss, {})
        return self

    def step(self) -> "FeatureNetwork":  # type: ignore[override]
        """The same: a backward pass of the caller's own has left its gradients on the features, and not beyond."""
        return self.reinforce()

    def pull(self) -> Tensor | None:
        """A loss ``[]`` whose gradients are those that have come together, to the bit; what waits is forgotten."""
        pulls = [(output * features.grad).sum() for output, features in self._calls if features.grad is not None]
        self._forget()
        if len(pulls) > 1:
            return torch.stack(pulls).sum()
        return pulls[0] if pulls else None

    def zero_grad(self) -> "FeatureNetwork":
        """Forget gradients that a backward pass has left, and the calls that it went through."""
        self._forget()
        super().zero_grad()
        return self

    def _forget(self) -> None:
        self._calls = []
        NETWORKS.discard(self)

    def state_dict(self) -> StateDict:
        if any(features.grad is not None for features in self.waiting()):
            raise CheckpointError(f"gradients wait for {self.name}.reinforce(), and cannot be saved: call it first")
        return super().state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        self._forget()
        super().load_state_dict(state)


class FeatureOptimization(Optimization):
    """Moves the features of a Learner's module by what its other optimizations, which come before, have left on them.

    Args:
        features: the network.
        more: as of :class:`Optimization`, but for what concerns losses.
    """

    def __init__(self, optimizer: optim.Optimizer, features: FeatureNetwork, **more: Any) -> None:
        super().__init__(optimizer, terms=(), **more)
        self.features = features

    def compute_gradients(self, losses: Losses | Tensor) -> list[Tensor | None]:
        """Those that have come together; none at all, which moves nothing, where no loss has reached the features."""
        loss = self.features.pull()
        return [] if loss is None else self.gradients(loss, self.parameters)

    def scaled(self, loss: Tensor) -> Tensor:
        """As it is: what was left on the features is scaled already."""
        return loss


class OverFeatures:
    """A network with a ``trunk`` and a ``head``, called over a :class:`FeatureNetwork` in the trunk's place."""

    def __init__(self, network: Any, features: FeatureNetwork) -> None:
        self.network, self.trunk, self.head = network, features, network.head

    def __call__(self, *inputs: Any) -> Any:
        return self.head(self.trunk(*inputs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def is_shared(model: nn.Module, networks: Mapping[str, nn.Module]) -> bool:
    """Whether a network is the trunk of others: one whose features they share."""
    return any(getattr(other, "trunk", None) is model for other in networks.values())


def as_asked(network: Approximation, networks: Mapping[str, Approximation]) -> Callable[..., Any]:
    """What the loss of a module with these ``networks`` calls, to ask one of them."""
    if isinstance(network, FeatureNetwork):
        return network
    trunk = getattr(network.model, "trunk", None)
    features = next((one for one in feature_networks(networks).values() if one.model is trunk), None)
    return network.ask if features is None else OverFeatures(network.model, features)


def feature_networks(networks: Mapping[str, Approximation]) -> dict[str, FeatureNetwork]:
    """Those of a module that others share, by their names."""
    return {name: one for name, one in networks.items() if isinstance(one, FeatureNetwork)}
