"""One network with all that moves it: usable alone, or as a network of a Learner."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from runner.learner.checkpointers import Checkpointer, DummyCheckpointer
from runner.learner.gradients import Clip
from runner.learner.optimization import Optimization
from runner.learner.targets import TargetNetwork, TrivialTarget
from runner.schedules import Schedule
from runner.spec import StateDict

Writer = Callable[[Mapping[str, Any]], None]


class Approximation:
    """A function approximation: a network, its target and, when it is used alone, its optimization.

    A subclass with a ``forward`` of its own asks the network and its target that way.

    Args:
        model: the network.
        optimizer: over the model's parameters; ``None`` where a Learner owns the optimization.
        target: follows the model after each update; the model itself where not given.
        scheduler: the learning rate, as a schedule over updates or a torch scheduler.
        clip_grad: largest global norm of the gradients; 0 leaves them.
        loss_scaling: multiplies each loss, for networks that share features.
        checkpointer: told of each update, after the target; nothing is written where not given.
        name: for metrics, and of the file that a checkpointer writes.
        device: where the model goes; where it is, if not given.
        writer: takes the metrics of each update, for example ``Metrics().add``.

    Attributes:
        ask: what gives the answers of a call: the model, or the subclass's ``forward`` with it.
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
        checkpointer: Checkpointer | None = None,
        name: str = "approximation",
        device: torch.device | str | None = None,
        writer: Writer | None = None,
    ) -> None:
        of_updates = {"scheduler": scheduler, "clip_grad": clip_grad, "checkpointer": checkpointer, "writer": writer}
        _check_use(name, model, optimizer, loss_scaling, of_updates)
        self.model = model if device is None else model.to(device)
        self.device = _device_of(model) if device is None else torch.device(device)
        self.name, self.writer, self.loss_scaling, self.updates = name, writer, loss_scaling, 0
        self.target = target or TrivialTarget()
        self.target.init(self.model)
        self.ask: Callable[..., Any] = self.model
        if type(self).forward is not Approximation.forward:
            self.ask, self.target.forward = partial(self.forward, self.model), self.forward
        self.checkpointer = checkpointer or DummyCheckpointer()
        self.checkpointer.init(self.model, f"{name}.npz")
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

    def __call__(self, *inputs: Any) -> Any:
        """Forward pass with gradients."""
        return self.ask(*inputs)

    def forward(self, model: nn.Module, *inputs: Any) -> Any:
        """What ``model``, the network or its target, says of the inputs."""
        return model(*inputs)

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
        """Move the weights down ``loss`` by one update: the whole pipeline of :class:`Optimization`.

        Features of a :class:`runner.learner.features.FeatureNetwork` that the loss depends on get their gradients, too.
        """
        return self._descend(loss, {f"loss/{self.name}": loss.detach()})

    def step(self) -> "Approximation":
        """The same after a backward pass of the caller's own, whose gradients are scaled like a loss would be.

        Those that shared features have got in it stay as they are.
        """
        optimization = self._own_optimization()
        for parameter in optimization.parameters if self.loss_scaling != 1 else ():
            if parameter.grad is not None:
                parameter.grad = parameter.grad * self.loss_scaling
        rate = self._rate()
        return self._count_update({**rate, **optimization.step(self.updates)})

    def zero_grad(self) -> "Approximation":
        """Forget gradients that a backward pass has left."""
        parameters = self.model.parameters() if self.optimization is None else self.optimization.parameters
        for parameter in parameters:
            parameter.grad = None
        return self

    def _descend(self, loss: Tensor, metrics: Mapping[str, Any]) -> "Approximation":
        optimization, rate = self._own_optimization(), self._rate()
        more = optimization.apply({f"loss_{self.name}": loss}, self.updates)
        return self._count_update({**metrics, **rate, **more})

    def _rate(self) -> dict[str, float]:
        """The learning rate of the step to come, where it is scheduled and someone reads it."""
        if self.writer is None or self.optimization is None or self.optimization.schedule is None:
            return {}
        return {f"lr/{self.name}": self.optimization.lr_at(self.updates)}

    def _own_optimization(self) -> Optimization:
        if self.optimization is None:
            raise RuntimeError(f"{self.name} was made without an optimizer: nothing can move its weights")
        return self.optimization

    def _count_update(self, metrics: Mapping[str, Any]) -> "Approximation":
        self.updates += 1
        self.checkpointer.update()
        if self.writer is not None:
            self.writer(metrics)
        return self

    def state_dict(self) -> StateDict:
        state = {"model": self.model.state_dict(), "target": self.target.state_dict(), "updates": self.updates}
        if self.optimization is None:
            return state
        self.optimization.check_finite()
        own = {"optimization": self.optimization.state_dict(), "checkpointer": self.checkpointer.state_dict()}
        return state | own

    def load_state_dict(self, state: StateDict) -> None:
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.updates = state["updates"]
        if self.optimization:
            self.optimization.load_state_dict(state["optimization"])
            self.checkpointer.load_state_dict(state["checkpointer"])


class Identity(Approximation):
    """Gives its input back; there is nothing to move."""

    def __init__(self, device: torch.device | str | None = None, name: str = "identity", **kwargs: Any) -> None:
        super().__init__(nn.Identity(), name=name, device=device, **kwargs)

    def reinforce(self, loss: Tensor | None = None) -> "Identity":
        """Do nothing."""
        return self

    def step(self) -> "Identity":
        """Do nothing."""
        return self


def _device_of(model: nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers() if isinstance(model, nn.Module) else ()), None)
    return torch.device("cpu") if first is None else first.device


def _moved_by(optimizer: optim.Optimizer) -> set[int]:
    return {id(one) for group in optimizer.param_groups for one in group["params"]}


def _check_use(
    name: str, model: nn.Module, optimizer: optim.Optimizer | None, loss_scaling: float, of_updates: Mapping[str, Any]
) -> None:
    """Refuse, without an optimizer, what would only ever count or change updates."""
    given = [argument for argument, value in of_updates.items() if value] + ["loss_scaling"] * (loss_scaling != 1)
    if optimizer is not None and not {id(one) for one in model.parameters()} & _moved_by(optimizer):
        raise ValueError(f"{name}: its optimizer has none of the model's parameters, which would never learn")
    if optimizer is None and given:
        raise ValueError(f"{name} has no optimizer, and so no updates, for its {' and '.join(given)} to take part in")
