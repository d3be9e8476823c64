"""Recurrent trunks: what they make of an observation depends on those before it in the episode."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.networks.normalizer import ObservationNormalizer
from runner.spec import IS_INIT, MEMORY, OBSERVATION, EnvSpec

Cell = Literal["lstm", "gru"]


class RecurrentTrunk(nn.Module):
    """A linear layer, a rectifier, and an LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014).

    Attributes:
        memory_size: numbers that are remembered of an episode: zeros at its beginning.
    """

    in_keys = (OBSERVATION, MEMORY, IS_INIT)

    def __init__(
        self, spec: EnvSpec, encoded: int, features: int, cell: Cell, normalizer: ObservationNormalizer | None
    ) -> None:
        super().__init__()
        self.input_dims, self.normalizer = len(spec.observation_shape), normalizer
        self.encoder = nn.Linear(torch.Size(spec.observation_shape).numel(), encoded)
        self.cell = nn.LSTMCell(encoded, features) if cell == "lstm" else nn.GRUCell(encoded, features)
        self.memory_size = features * (2 if cell == "lstm" else 1)
        self.features = features

    def forward(self, observation: Tensor, memory: Tensor, is_init: Tensor) -> Tensor:
        """Whole sequences ``[B, L, ...]``; of the memory ``[B, L, memory_size]`` only that at their start counts."""
        if observation.ndim != self.input_dims + 2:
            given = list(observation.shape)
            raise ValueError(f"a network with a memory learns from sequences [B, L, ...]; it was given {given}")
        encoded, remembered = self._encode(observation), memory[:, 0]
        begins = is_init.unsqueeze(-1)
        features = []
        for t in range(encoded.shape[1]):
            remembered = self._move_on(encoded[:, t], torch.where(begins[:, t], 0.0, remembered))
            features.append(remembered[..., : self.features])
        return torch.stack(features, 1)

    def step(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step of ``N`` episodes: features ``[N, features]`` and the memory after it ``[N, memory_size]``."""
        after = self._move_on(self._encode(observation), memory)
        return after[..., : self.features], after

    def _encode(self, observation: Tensor) -> Tensor:
        x = observation if self.normalizer is None else self.normalizer(observation)
        x = x.flatten(-self.input_dims) if self.input_dims != 1 else x
        return F.relu(self.encoder(x.to(self.encoder.weight.dtype)))

    def _move_on(self, encoded: Tensor, memory: Tensor) -> Tensor:
        if isinstance(self.cell, nn.GRUCell):
            return self.cell(encoded, memory)
        hidden, inner = memory.split(self.features, -1)
        return torch.cat(self.cell(encoded, (hidden.contiguous(), inner.contiguous())), -1)


class Twin(nn.Module):
    """Two trunks side by side: features, and memories, of the first and then of the second."""

    in_keys = RecurrentTrunk.in_keys

    def __init__(self, first: RecurrentTrunk, second: RecurrentTrunk) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.memory_size, self.features = first.memory_size + second.memory_size, first.features

    def forward(self, observation: Tensor, memory: Tensor, is_init: Tensor) -> Tensor:
        of_first, of_second = self._split(memory)
        parts = self.first(observation, of_first, is_init), self.second(observation, of_second, is_init)
        return torch.cat(parts, -1)

    def step(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        of_first, of_second = self._split(memory)
        one, after_one = self.first.step(observation, of_first)
        two, after_two = self.second.step(observation, of_second)
        return torch.cat([one, two], -1), torch.cat([after_one, after_two], -1)

    def _split(self, memory: Tensor) -> tuple[Tensor, ...]:
        return memory.split([self.first.memory_size, self.second.memory_size], -1)


def begin_orthogonal_cell(trunk: RecurrentTrunk) -> None:
    """Set weights and biases in place."""
    nn.init.orthogonal_(trunk.encoder.weight, 2**0.5)
    nn.init.zeros_(trunk.encoder.bias)
    for name, parameter in trunk.cell.named_parameters():
        nn.init.zeros_(parameter) if "bias" in name else nn.init.orthogonal_(parameter)
