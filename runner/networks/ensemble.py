"""Several networks of one shape, evaluated together."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.networks.mlp import Activation


class EnsembleLinear(nn.Module):
    """``members`` linear layers in one product of matrices: ``[M, B, inputs] -> [M, B, outputs]``.

    Each begins like an ``nn.Linear`` of its own.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """The first ``len(x)`` members."""
        if len(x) == len(self.weight):  # a slice of all costs a copy in the backward pass
            return torch.baddbmm(self.bias, x, self.weight)
        return torch.baddbmm(self.bias[: len(x)], x, self.weight[: len(x)])


class QEnsemble(nn.Module):
    """Independent action values, ``([*B, *observation], [*B, A]) -> [M, *B]``, evaluated together."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Activation, members: int) -> None:
        super().__init__()
        self.members = members
        sizes = [inputs, *hidden, 1]
        self.layers = nn.ModuleList(EnsembleLinear(members, size, following) for size, following in pairwise(sizes))
        self._stack: tuple[Any, ...] = tuple(self.layers)
        self.activation = getattr(torch if activation in ("relu", "tanh") else F, activation)

    def forward(self, observation: Tensor, action: Tensor, members: int | None = None) -> Tensor:
        """Values ``[M, *B]``; of the first ``members`` alone, if given."""
        shape = action.shape[:-1]
        action = action.reshape(-1, action.shape[-1])
        x = torch.cat([observation.reshape(len(action), -1).to(action.dtype), action], -1)
        x = x.expand(members or self.members, *x.shape)
        *hidden, last = self._stack
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x).reshape(len(x), *shape)
