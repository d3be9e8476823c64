"""Small models, and states compared to the bit."""

from itertools import pairwise

import torch
from torch import Tensor, nn, optim


def linear(*sizes, activation=nn.Tanh, seed=0):
    """Layers of these widths, with an activation between them."""
    torch.manual_seed(seed)
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1])


def sgd(model, lr=0.1):
    return optim.SGD(model.parameters(), lr=lr)


def copies(model):
    return [value.clone() for value in model.state_dict().values()]


def same_state(one, other):
    """Whether nested states are equal to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other
