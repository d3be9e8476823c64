"""The one path from losses to new weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor, optim
from torch.optim.lr_scheduler import LRScheduler

from runner.learner.gradients import (
    Clip,
    NonFinite,
    are_finite,
    multiply_and_check,
    with_own_memory,
    zero_non_finite,
)
from runner.learner.precision import LossScaler
from runner.learner.shared import features_that_wait, leave_on
from runner.learner.targets import TargetNetwork
from runner.schedules import Schedule
from runner.spec import CheckpointError, HooklineError, StateDict

Losses = TensorDictBase | Mapping[str, Tensor]

_SCHEDULED = ("lr", "momentum", "betas")
"""What torch's schedulers set; some move the momentum against the learning rate."""


_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg")
"""Moments that have the shape of their parameter."""

NON_FINITE_LIMIT = 100
"""In a row; a loss scale that begins too high is right after some twenty."""
COUNTS = ("skipped", "zeroed", "non_finite_in_a_row")
"""What an optimization counts of updates with gradients that were not finite."""


class NonFiniteError(HooklineError):
    """Training has produced a NaN or an infinity."""


class Optimization:
    """One optimizer and all that belongs to it.

    The order is: weight the losses, scale them, gradients, unscale, non-finite policy, clip, step, schedule, targets.

    Args:
        optimizer: with the parameters, of one or several networks, that these losses may move.
        terms: the terms of the loss it minimizes; ``None`` for all.
        every: apply in every n-th update: of the module, in a Learner.
        schedule: learning rate over env steps, or a torch scheduler, which is stepped after each applied update.
        clip: bounds the gradients; ``None`` leaves them.
        loss_weights: by name of a ``loss_*`` key without its prefix; 1 where not named.
        non_finite: what becomes of an update with gradients that are not finite: ``raise`` (noticed in the weights, at
            the next metric row and before each save), ``skip`` (weights, moments, torch scheduler and targets stay as
            they are) or ``zero`` those elements. With a ``scaler`` ``raise`` skips as well: an overflow is no error.
        non_finite_limit: so many skipped or zeroed updates in a row raise; ``None`` for any number.
        targets: follow the networks after each applied update.
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        *,
        name: str = "default",
        terms: Sequence[str] | None = None,
        every: int = 1,
        schedule: Schedule | LRScheduler | None = None,
        clip: Clip | None = None,
        loss_weights: Mapping[str, float] | None = None,
        non_finite: NonFinite = "raise",
        non_finite_limit: int | None = NON_FINITE_LIMIT,
        targets: Sequence[TargetNetwork] = (),
    ) -> None:
        if every < 1 or non_finite not in get_args(NonFinite):
            raise ValueError(
                f"{name}: every={every} must be >= 1 and non_finite={non_finite!r} one of {get_args(NonFinite)}"
            )
        if non_finite_limit is not None and non_finite_limit < 1:
            raise ValueError(f"{name}: non_finite_limit={non_finite_limit} must be >= 1, or null for no limit")
        self.optimizer, self.name, self.terms, self.every = optimizer, name, terms, every
        self.schedule, self.clip, self.targets = schedule, clip, tuple(targets)
        self.loss_weights = dict(loss_weights or {})
        self.non_finite, self.non_finite_limit = non_finite, non_finite_limit
        self.scaler: LossScaler | None = None
        self.parameters: list[Tensor] = [one for group in optimizer.param_groups for one in group["params"]]
        self._initial_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.skipped = self.zeroed = self.non_finite_in_a_row = 0

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def lr_at(self, env_steps: int) -> float:
        """The learning rate at ``env_steps``."""
        if self.schedule is None or isinstance(self.schedule, LRScheduler):
            return self.lr
        return self.schedule(self._initial_lrs[0], env_steps)

    def is_due(self, updates: int) -> bool:
        """Whether update number ``updates`` (from 0) is one of its own."""
        return updates % self.every == 0

    def apply(self, losses: Losses | Tensor, env_steps: int = 0) -> dict[str, Tensor]:
        """Minimize ``losses`` (one scalar, or all ``loss_*`` entries) by one step, and return metrics."""
        gradients = self.compute_gradients(losses)
        metrics = self.postprocess_gradients(gradients)
        self.apply_gradients(gradients, env_steps)
        return metrics

    def step(self, env_steps: int = 0) -> dict[str, Tensor]:
        """The same for gradients that a caller's own backward pass (of ``scaled`` losses) has left in ``.grad``."""
        gradients = [parameter.grad for parameter in self.parameters]
        metrics = self.postprocess_gradients(gradients)
        self.apply_gradients(gradients, env_steps)
        return metrics

    def total(self, losses: Losses | Tensor) -> Tensor:
        """The weighted sum of all ``loss_*`` entries, ``[]``."""
        if isinstance(losses, Tensor):
            return losses
        terms: list[tuple[str, Any]] = [(key[5:], loss) for key, loss in losses.items() if key.startswith("loss_")]
        if not terms:
            raise KeyError(f"{self.name}: no loss_* among {sorted(losses.keys())}")
        if unknown := self.loss_weights.keys() - {key for key, _ in terms}:
            raise KeyError(
                f"{self.name}: loss weights for {sorted(unknown)}, but the terms are {[key for key, _ in terms]}"
            )
        weighted = [loss * self.loss_weights[key] if key in self.loss_weights else loss for key, loss in terms]
        return weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum()

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale, where there is a scaler."""
        return loss if self.scaler is None else self.scaler.scaled(loss)

    def compute_gradients(self, losses: Losses | Tensor) -> list[Tensor | None]:
        """Gradients of the weighted losses for its own parameters; ``None`` where a loss does not reach, or frozen.

        Those for features that wait are left there. With a scaler all are those of the scaled losses.
        """
        features = features_that_wait()
        gradients = self.gradients(losses, [*self.parameters, *features])
        leave_on(features, gradients[len(self.parameters) :])
        return gradients[: len(self.parameters)]

    def gradients(self, losses: Losses | Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """The same for ``parameters``, which stand in for its own one by one."""
        moving = [parameter for parameter in parameters if parameter.requires_grad]
        if not moving:
            return [None] * len(parameters)
        gradients = with_own_memory(torch.autograd.grad(self.scaled(self.total(losses)), moving, allow_unused=True))
        if len(moving) == len(parameters):
            return gradients
        given = iter(gradients)
        return [next(given) if parameter.requires_grad else None for parameter in parameters]

    def postprocess_gradients(self, gradients: list[Tensor | None]) -> dict[str, Tensor]:
        """Unscale, non-finite policy and clipping, in place; a skipped update leaves the list empty."""
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return {}
        if (self.scaler is not None or self.non_finite != "raise") and not self._goes_on(present):
            gradients.clear()
            return {}
        return {f"grad_norm/{self.name}": self.clip(present)} if self.clip else {}

    def _goes_on(self, gradients: Sequence[Tensor]) -> bool:
        """Unscale, and count what is not finite: whether there is something to step by."""
        if self.scaler is None:
            found = multiply_and_check(gradients, gradients[0].new_ones((), dtype=torch.float32))
        else:
            found = self.scaler.unscale(gradients)
        if not found:
            self.non_finite_in_a_row = 0
            return True
        self.non_finite_in_a_row += 1
        if self.non_finite_limit is not None and self.non_finite_in_a_row >= self.non_finite_limit:
            raise NonFiniteError(
                f"optimization {self.name!r}: gradients were not finite in {self.non_finite_in_a_row} updates in a row "
                "(learner.non_finite_limit): try a lower optimizer.lr or learner.clip=10"
            )
        if self.non_finite != "zero":
            self.skipped += 1
            return False
        self.zeroed += 1
        zero_non_finite(gradients)
        return True

    def apply_gradients(self, gradients: Sequence[Tensor | None], env_steps: int = 0) -> None:
        """Step the optimizer, then the schedule and the targets; no gradients at all (a skipped update) move nothing.

        A schedule over env steps sets the rate before the step.
        """
        self.set_lr(env_steps)
        if gradients:
            self._step(gradients)
        for parameter in self.parameters:
            parameter.grad = None

    def _step(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.follow()

    def follow(self) -> None:
        """After a step: move a torch scheduler and the targets on."""
        if isinstance(self.schedule, LRScheduler):
            self.schedule.step()
        for target in self.targets:
            target.update()

    def set_lr(self, env_steps: int) -> None:
        """Set the learning rate of the next step by the schedule over env steps, if it is one."""
        if self.schedule is None or isinstance(self.schedule, LRScheduler):
            return
        for group, initial in zip(self.optimizer.param_groups, self._initial_lrs, strict=True):
            group["lr"] = self.schedule(initial, env_steps)

    def check_finite(self) -> None:
        """Raise :class:`NonFiniteError` if a parameter is no longer finite."""
        if not are_finite([parameter.detach() for parameter in self.parameters]):
            raise NonFiniteError(
                f"optimization {self.name!r}: its weights are no longer finite: "
                "try a lower optimizer.lr, learner.clip=10 or learner.non_finite=skip"
            )

    def row_metrics(self) -> dict[str, float]:
        """How many updates were skipped or zeroed so far, where some may be."""
        if self.non_finite == "zero":
            return {f"train/zeroed/{self.name}": self.zeroed}
        return {f"train/skipped/{self.name}": self.skipped} if self.non_finite == "skip" or self.scaler else {}

    def state_dict(self) -> StateDict:
        """Moments and counts. Learning rates and the like are configuration, which wins over a checkpoint."""
        state: dict[str, Any] = {"optimizer": _with_string_keys(self.optimizer.state_dict()["state"])}
        if isinstance(self.schedule, LRScheduler):
            state["schedule"] = _state_of(self.schedule)
        counts = {name: getattr(self, name) for name in COUNTS}
        return {**state, "kind": type(self.optimizer).__name__, **counts}

    def load_state_dict(self, state: StateDict) -> None:
        kind = type(self.optimizer).__name__
        if state["kind"] != kind:
            raise CheckpointError(f"the checkpoint has moments of {state['kind']}, which {kind} cannot go on with")
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(index): _copied(values) for index, values in state["optimizer"].items()}
        for index, values in moments.items():
            self._check_shapes(index, values)
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if isinstance(self.schedule, LRScheduler):
            _load(self.schedule, state["schedule"])
        for name in COUNTS:
            setattr(self, name, state.get(name, 0))

    def _check_shapes(self, index: int, moments: Mapping[str, Any]) -> None:
        own = list(self.parameters[index].shape) if index < len(self.parameters) else None
        shapes = [list(moments[name].shape) for name in _SHAPED if isinstance(moments.get(name), Tensor)]
        if strange := [shape for shape in shapes if shape != own]:
            raise CheckpointError(f"{self.name}: moments of the shape {strange[0]} are not of parameter {index}: {own}")


def _state_of(scheduler: LRScheduler) -> StateDict:
    """Where it is, and what it has set; milestones, which no plain dict holds, are configuration."""
    own = {name: value for name, value in scheduler.state_dict().items() if not isinstance(value, Counter)}
    groups = scheduler.optimizer.param_groups
    return {"own": own, "set": [{name: group[name] for name in _SCHEDULED if name in group} for group in groups]}


def _load(scheduler: LRScheduler, state: StateDict) -> None:
    scheduler.load_state_dict(state["own"])
    for group, values in zip(scheduler.optimizer.param_groups, state["set"], strict=True):
        group.update({name: tuple(value) if name == "betas" else value for name, value in values.items()})


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Torch keeps the very tensors it is given: without a copy, two optimizers would write into the same moments."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def _with_string_keys(state: Mapping[int, Any]) -> dict[str, Any]:
    return {str(index): values for index, values in state.items()}
