"""The optimizers of torch, with signatures that say what each of their arguments may be."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn, optim

from runner.types import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat


class Adam(optim.Adam):
    """Torch's Adam, whose fused step gathers its lists of tensors once: in every step, that is half of the time.

    Same kernel, same state, same bits.
    """

    _lists: Any = None

    def step(self, closure: Any = None) -> Any:
        """One update; see :meth:`torch.optim.Adam.step`."""
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        is_scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        if self._lists is None or closure is not None or is_scaled or any(one is None for one in gradients):
            return self._first_step(closure)
        self._fused_step(gradients)
        return None

    def _first_step(self, closure: Any) -> Any:
        """Torch's own step, which makes the state that the lists are of."""
        result = super().step(closure)
        group = self.param_groups[0]
        states = [self.state.get(parameter, {}) for parameter in group["params"]]
        if len(self.param_groups) == 1 and group["fused"] and all(states) and not group["amsgrad"]:
            self._lists = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        return result

    @torch.no_grad()
    def _fused_step(self, gradients: list[Any]) -> None:
        group = self.param_groups[0]
        averages, squares, steps = self._lists
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            group["params"], gradients, averages, squares, [], steps, lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
            maximize=group["maximize"],
        )  # fmt: skip

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self._lists = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._lists = None


def adam(
    params: Iterable[nn.Parameter],
    lr: PositiveFloat = 1e-3,
    betas: tuple[Fraction, OpenFraction] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    fused: bool = True,
) -> optim.Optimizer:
    """Adam (Kingma & Ba 2015); with weight decay AdamW (Loshchilov & Hutter 2019)."""
    kind = optim.AdamW if weight_decay else Adam
    return kind(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


def sgd(
    params: Iterable[nn.Parameter],
    lr: PositiveFloat = 1e-2,
    momentum: Fraction = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> optim.Optimizer:
    """Stochastic gradient descent."""
    return optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)


def rmsprop(
    params: Iterable[nn.Parameter],
    lr: PositiveFloat = 1e-3,
    alpha: Fraction = 0.99,
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
) -> optim.Optimizer:
    """RMSprop (Tieleman & Hinton 2012)."""
    return optim.RMSprop(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)


def adamax(
    params: Iterable[nn.Parameter],
    lr: PositiveFloat = 2e-3,
    betas: tuple[Fraction, OpenFraction] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
) -> optim.Optimizer:
    """Adamax (Kingma & Ba 2015, algorithm 2)."""
    return optim.Adamax(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=True)
