"""One network with all that moves it: usable alone, or as a network of a Learner."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from runner.learner.gradients import Clip
from runner.learner.optimization import Optimization
from runner.learner.targets import TargetNetwork, TrivialTarget
from runner.schedules import Schedule
from runner.spec import StateDict

Writer = Callable[[Mapping[str, Any]], None]


class Approximation:
    """A function approximation: a network, its target and, when it is used alone, its optimization.

    Args:
        model: the network.
        optimizer: over the model's parameters; ``None`` where a Learner owns the optimization.
        target: follows the model after each update; the model itself where not given.
        scheduler: the learning rate, as a schedule over updates or a torch scheduler.
        clip_grad: largest global norm of the gradients; 0 leaves them.
        loss_scaling: multiplies each loss, for networks that share features.
        name: for metrics.
        device: where the model goes; where it is, if not given.
        writer: takes the metrics of each update, for example ``Metrics().add``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer | None = None,
        *,
        target: TargetNetwork | None = None,
        scheduler: Schedule | LRScheduler | None = None,
        clip_grad: float = 0,
        loss_scaling: float = 1,
        name: str = "approximation",
        device: torch.device | str | None = None,
        writer: Writer | None = None,
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.name, self.writer, self.loss_scaling = name, writer, loss_scaling
        self.device = torch.device(device) if device else next((one.device for one in model.parameters()), None)
        self.target = target or TrivialTarget()
        self.target.init(self.model)
        self.updates = 0
        self.optimization = (
            None
            if optimizer is None
            else Optimization(
                optimizer,
                name=name,
                schedule=scheduler,
                clip=Clip(clip_grad) if clip_grad else None,
                loss_weights={name: loss_scaling} if loss_scaling != 1 else None,
                targets=(self.target,),
            )
        )

    def __call__(self, *inputs: Tensor) -> Any:
        """Forward pass with gradients."""
        return self.model(*inputs)

    def no_grad(self, *inputs: Tensor) -> Any:
        """Forward pass without gradients."""
        with torch.no_grad():
            return self(*inputs)

    def eval(self, *inputs: Tensor) -> Any:
        """Forward pass without gradients in evaluation mode, after which each layer is in its former mode again."""
        were_training = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            return self.no_grad(*inputs)
        finally:
            for module, was_training in were_training:
                module.training = was_training

    def reinforce(self, loss: Tensor) -> "Approximation":
        """Move the weights down ``loss`` by one update: the whole pipeline of :class:`Optimization`."""
        metrics = self._own_optimization().apply({f"loss_{self.name}": loss}, self.updates)
        return self._count_update({f"loss/{self.name}": loss.detach(), **metrics})

    def step(self) -> "Approximation":
        """The same after a backward pass of the caller's own, whose gradients are scaled like a loss would be."""
        for parameter in self.model.parameters():
            if self.loss_scaling != 1 and parameter.grad is not None:
                parameter.grad = parameter.grad * self.loss_scaling
        return self._count_update(self._own_optimization().step(self.updates))

    def zero_grad(self) -> "Approximation":
        """Forget gradients that a backward pass has left."""
        for parameter in self.model.parameters():
            parameter.grad = None
        return self

    def _own_optimization(self) -> Optimization:
        if self.optimization is None:
            raise RuntimeError(f"{self.name} was made without an optimizer: nothing can move its weights")
        return self.optimization

    def _count_update(self, metrics: Mapping[str, Any]) -> "Approximation":
        self.updates += 1
        if self.writer is not None:
            self.writer(metrics)
        return self

    def state_dict(self) -> StateDict:
        if self.optimization is not None:
            self.optimization.check_finite()
        state = {"model": self.model.state_dict(), "target": self.target.state_dict(), "updates": self.updates}
        return state | ({"optimization": self.optimization.state_dict()} if self.optimization else {})

    def load_state_dict(self, state: StateDict) -> None:
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.updates = state["updates"]
        if self.optimization:
            self.optimization.load_state_dict(state["optimization"])


class QNetwork(Approximation):
    """Values of discrete actions: ``q(states) -> [B, A]``, ``q(states, actions) -> [B]``."""

    def __init__(
        self, model: nn.Module, optimizer: optim.Optimizer | None = None, name: str = "q", **kwargs: Any
    ) -> None:
        super().__init__(model, optimizer, name=name, **kwargs)

    def __call__(self, states: Tensor, actions: Tensor | None = None) -> Tensor:  # type: ignore[override]
        values = self.model(states)
        return values if actions is None else values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
