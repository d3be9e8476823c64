"""Copies of a network that follow it slowly, so that it does not chase its own estimate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from runner.spec import StateDict
from runner.types import Fraction, PositiveInt


class TargetNetwork(ABC):
    """A target is given its network once (``init``), follows it (``update``), and is called without gradients.

    Attributes:
        model: what is called, to be set by ``init``.
        forward: how ``model`` is asked, where an approximation has its own way.
    """

    model: nn.Module
    forward: Callable[..., Any] | None = None

    @abstractmethod
    def init(self, model: nn.Module) -> None:
        """Take the network to follow."""

    @abstractmethod
    def update(self) -> None:
        """One update of the network has happened."""

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return self.model(*inputs) if self.forward is None else self.forward(self.model, *inputs)

    def state_dict(self) -> StateDict:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.model.load_state_dict(state["model"])


class TrivialTarget(TargetNetwork):
    """The network itself, seen without gradients."""

    def init(self, model: nn.Module) -> None:
        self.model = model

    def update(self) -> None:
        pass

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        pass


class Pairs(NamedTuple):
    """A copy's own tensors beside the network's: floating-point ones, and the others."""

    floats: tuple[list[Tensor], list[Tensor]]
    others: tuple[list[Tensor], list[Tensor]]


class _Copy(TargetNetwork):
    """A frozen deep copy of ``network``, with matching lists of tensors for updates in one call."""

    def init(self, model: nn.Module) -> None:
        self.model = deepcopy(model).requires_grad_(False)
        self.network = model
        self._has_buffers = any(True for _ in model.buffers())
        self._pairs = _pair_up(self.model, model)

    def pairs(self) -> Pairs:
        """Buffers are looked up each time, since a module may replace them where parameters stay what they are."""
        return _pair_up(self.model, self.network) if self._has_buffers else self._pairs


class FixedTarget(_Copy):
    """A copy renewed after every ``update_frequency`` updates (Mnih et al. 2015), buffers included."""

    def __init__(self, update_frequency: PositiveInt) -> None:
        if update_frequency < 1:
            raise ValueError(f"a target renewed after every {update_frequency} updates: it must be >= 1")
        self.update_frequency = update_frequency
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        if self._updates % self.update_frequency == 0:
            for own, source in self.pairs():
                if own:
                    torch._foreach_copy_(own, source)

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "updates": self._updates}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self._updates = state["updates"]


class PolyakTarget(_Copy):
    """``target = (1 - rate) * target + rate * network`` after every update (Lillicrap et al. 2016).

    Floating-point buffers are averaged like parameters; integer ones are copied.
    """

    def __init__(self, rate: Fraction) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"a target averaged at a rate of {rate}: it must be between 0 and 1")
        self.rate = rate

    @torch.no_grad()
    def update(self) -> None:
        floats, others = self.pairs()
        if floats[0]:
            torch._foreach_lerp_(*floats, self.rate)
        if others[0]:
            torch._foreach_copy_(*others)


def _pair_up(copy: nn.Module, network: nn.Module) -> Pairs:
    pairs: list[tuple[list[Tensor], list[Tensor]]] = [([], []), ([], [])]
    tensors = zip((*copy.parameters(), *copy.buffers()), (*network.parameters(), *network.buffers()), strict=True)
    for own, source in tensors:
        into = pairs[0 if own.is_floating_point() else 1]
        into[0].append(own)
        into[1].append(source)
    return Pairs(*pairs)
