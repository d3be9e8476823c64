"""Multi-layer perceptrons whose sizes come from the environment's spec."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.networks.normalizer import ObservationNormalizer
from runner.spec import EnvSpec
from runner.types import PositiveInt

Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]


_ZERO = np.float32(0)  # a Python number costs numpy a conversion in every call
NUMPY_ACTIVATIONS: dict[str, Any] = {"relu": lambda x: np.maximum(x, _ZERO, out=x), "tanh": lambda x: np.tanh(x, out=x)}


class MLP(nn.Module):
    """Linear layers with one activation between them: ``[..., *input_shape] -> [..., outputs]``.

    Calling ``F.linear`` in a loop costs less than half of ``nn.Sequential`` at batch size 1.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        activation: Activation,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.input_dims = len(input_shape)
        sizes = [torch.Size(input_shape).numel(), *hidden, outputs]
        self.layers = nn.ModuleList(nn.Linear(size, following) for size, following in pairwise(sizes))
        self._stack: tuple[Any, ...] = tuple(self.layers)  # iterating a ModuleList costs as much as a small matmul
        self._registers: list[dict[str, Any]] = [layer._parameters for layer in self._stack]
        self._addresses: list[int] = []
        self._views: list[tuple[np.ndarray, np.ndarray]] = []
        self._numpy_activation: Any = NUMPY_ACTIVATIONS.get(activation)
        self.normalizer = normalizer
        self.activation = getattr(torch if activation in ("relu", "tanh") else F, activation)

    def forward(self, observation: Tensor) -> Tensor:
        """``[..., *input_shape] -> [..., outputs]``; whole numbers and bytes are taken as they are."""
        x = observation if self.normalizer is None else self.normalizer(observation)
        x = x if self.input_dims == 1 else self._flattened(x)
        *hidden, last = self._stack
        if x.dtype != last.weight.dtype:
            x = x.to(last.weight.dtype)
        for layer in hidden:
            x = self.activation(F.linear(x, layer.weight, layer.bias))
        return F.linear(x, last.weight, last.bias)

    @property
    def has_numpy(self) -> bool:
        """Whether :meth:`forward_numpy` can be used: flat float32 inputs, and an activation that numpy has."""
        is_float32 = self._parameters_now()[0].dtype == torch.float32
        return self.input_dims == 1 and self._numpy_activation is not None and is_float32

    def forward_numpy(self, observation: np.ndarray) -> np.ndarray:
        """The same on the CPU for one or a few float32 rows, ``[inputs]`` or ``[N, inputs]``, a third of torch's cost.

        Equal to :meth:`forward` up to rounding; works on the memory of the parameters, which it never copies.
        """
        *hidden, last = self._arrays()
        x = observation if self.normalizer is None else self.normalizer.forward_numpy(observation)
        for weight, bias in hidden:
            x = x @ weight
            x += bias
            self._numpy_activation(x)
        return x @ last[0] + last[1]

    def _arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Transposed weights and biases as views, made anew when a parameter has moved."""
        parameters = self._parameters_now()
        addresses = [parameter.data_ptr() for parameter in parameters]
        if addresses != self._addresses:
            self._addresses = addresses
            arrays = [parameter.detach().numpy() for parameter in parameters]
            self._views = [(weight.T, bias) for weight, bias in zip(arrays[::2], arrays[1::2], strict=True)]
        return self._views

    def _parameters_now(self) -> list[Tensor]:
        """Weight and bias of each layer: from its register, as asking the layer by name costs ten times as much."""
        return [parameter for register in self._registers for parameter in register.values()]

    def _flattened(self, observation: Tensor) -> Tensor:
        return observation.flatten(-self.input_dims) if self.input_dims else observation.unsqueeze(-1)


class FeatureMLP(MLP):
    """The same with an activation after the last layer, for heads to stand on."""

    @property
    def features(self) -> int:
        return int(self._stack[-1].out_features)

    def forward(self, observation: Tensor) -> Tensor:
        return self.activation(super().forward(observation))

    def forward_numpy(self, observation: np.ndarray) -> np.ndarray:
        return self._numpy_activation(super().forward_numpy(observation))


def make_q_network(
    spec: EnvSpec, hidden: list[PositiveInt], activation: Activation, normalize_observations: bool = False
) -> dict[str, nn.Module]:
    """A network ``q`` with one value for each discrete action: ``[B, *observation] -> [B, A]``.

    Args:
        normalize_observations: each element by its running mean and variance, which are part of the network.
    """
    if spec.num_actions is None:
        raise ValueError(f"action values need discrete actions; {spec.id} takes vectors of shape {spec.action_shape}")
    normalizer = ObservationNormalizer(spec.observation_shape) if normalize_observations else None
    return {"q": MLP(spec.observation_shape, hidden, spec.num_actions, activation, normalizer)}
