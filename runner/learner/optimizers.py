"""The optimizers of torch, with signatures that say what each of their arguments may be."""

from collections.abc import Iterable

from torch import nn, optim

from runner.types import Fraction, NonNegativeFloat, OpenFraction, PositiveFloat


def adam(
    params: Iterable[nn.Parameter],
    lr: PositiveFloat = 1e-3,
    betas: tuple[Fraction, OpenFraction] = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    fused: bool = True,
) -> optim.Optimizer:
    """Adam (Kingma & Ba 2015); with weight decay AdamW (Loshchilov & Hutter 2019)."""
    kind = optim.AdamW if weight_decay else optim.Adam
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
