"""Multi-layer perceptrons whose sizes come from the environment's spec."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.spec import EnvSpec
from runner.types import PositiveInt

Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]


class MLP(nn.Module):
    """Linear layers with one activation between them: ``[..., *input_shape] -> [..., outputs]``.

    Calling ``F.linear`` in a loop costs less than half of ``nn.Sequential`` at batch size 1.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int], outputs: int, activation: Activation) -> None:
        super().__init__()
        self.input_dims = len(input_shape)
        sizes = [torch.Size(input_shape).numel(), *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(size, following) for size, following in pairwise(sizes))
        self._stack: tuple[Any, ...] = tuple(
            self.layers
        )  # plain attribute: iterating a ModuleList costs as much as a small matmul
        self.activation = getattr(torch if activation in ("relu", "tanh") else F, activation)

    def forward(self, observation: Tensor) -> Tensor:
        """``[..., *input_shape] -> [..., outputs]``."""
        x = observation if self.input_dims == 1 else self._flattened(observation)
        *hidden, last = self._stack
        for layer in hidden:
            x = self.activation(F.linear(x, layer.weight, layer.bias))
        return F.linear(x, last.weight, last.bias)

    def _flattened(self, observation: Tensor) -> Tensor:
        return observation.flatten(-self.input_dims) if self.input_dims else observation.unsqueeze(-1)


def make_q_network(spec: EnvSpec, hidden: list[PositiveInt], activation: Activation) -> dict[str, nn.Module]:
    """A network ``q`` with one value for each discrete action: ``[B, *observation] -> [B, A]``."""
    if spec.num_actions is None:
        raise ValueError(f"action values need discrete actions; {spec.id} takes vectors of shape {spec.action_shape}")
    return {"q": MLP(spec.observation_shape, hidden, spec.num_actions, activation)}
