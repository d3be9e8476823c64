"""The number format in which updates call networks: fp32, or half of it (Micikevicius et al. 2018)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from runner.learner.gradients import multiply_and_check
from runner.spec import StateDict
from runner.types import PrecisionName

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How networks are called in updates; weights, losses and the optimizer's moments stay in fp32.

    ``bf16`` has the range of fp32; the gradients of ``fp16`` are kept in its range by a scaler, one for all
    optimizations of a module, so that they agree on the scale of an update.
    """

    def __init__(self, name: PrecisionName = "fp32") -> None:
        if name != "fp32" and name not in HALVES:
            raise ValueError(f"no precision {name!r}: use fp32, {' or '.join(HALVES)}")
        self.name = name
        self._in_half: dict[int, InHalf] = {}

    def make_scaler(self) -> "LossScaler | None":
        """What keeps the gradients of one module in range, where that needs something."""
        return LossScaler() if self.name == "fp16" else None

    def forget(self) -> None:
        """Hold on to no network any more; those that were given out go on."""
        self._in_half.clear()

    def of(self, network: Callable[..., Any], device: torch.device | str) -> Callable[..., Any]:
        """``network``, called in this precision on ``device``; the same one for the same network, itself for fp32."""
        if self.name == "fp32":
            return network
        if id(network) not in self._in_half:
            made = InHalf(network, HALVES[self.name], torch.device(device).type, partial(self.of, device=device))
            self._in_half[id(network)] = made
        return self._in_half[id(network)]


class InHalf:
    """A network that computes in ``dtype`` what torch's autocast finds fit for it, and gives its outputs in fp32.

    So the maths of losses, which costs nothing and where sums and logarithms want all digits, stays what it is.
    """

    PARTS = ("trunk", "head")
    """What is called by itself where two networks share a trunk."""

    def __init__(
        self,
        network: Callable[..., Any],
        dtype: torch.dtype,
        device_type: str,
        of: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        self.network, self.dtype, self.device_type, self._of = network, dtype, device_type, of

    def __call__(self, *inputs: Any, **more: Any) -> Any:
        return self._call(self.network, *inputs, **more)

    def compute_self_supervised_loss(self, batch: Any) -> Any:
        """That of a network which brings its own."""
        return self._call(self.network.compute_self_supervised_loss, batch)  # type: ignore[attr-defined]

    def _call(self, function: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
        # Without its cache of weights, which would add up gradients of a cell's steps in half, and not when recorded.
        with torch.autocast(self.device_type, self.dtype, cache_enabled=False):
            outputs = function(*inputs, **more)
        return tree_map_only(Tensor, self._in_full, outputs)

    def _in_full(self, output: Tensor) -> Tensor:
        return output.float() if output.dtype is self.dtype else output

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("network", "_of"):  # of a copy that has nothing yet
            raise AttributeError(name)
        part = getattr(self.network, name)
        return self._of(part) if name in self.PARTS else part


class LossScaler:
    """Multiplies losses by a factor, so that small gradients are not zero in fp16.

    The rule is that of ``torch.amp.GradScaler``: an overflow anywhere in an update halves the scale of the next, and
    ``growth_interval`` updates without one double it.
    The differences: it takes gradients in place of an optimizer, and an update without any moves nothing.
    """

    def __init__(
        self,
        scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        self.scale = torch.tensor(scale)
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self._good_updates = torch.tensor(0, dtype=torch.int32)
        self._found: list[Tensor] = []

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale."""
        if self.scale.device != loss.device:  # recorded programs refer to this very tensor from the first loss on
            self.scale, self._good_updates = self.scale.to(loss.device), self._good_updates.to(loss.device)
        return loss * self.scale

    def unscale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Divide an optimization's gradients by the scale, in place; 1 where one is not finite, else 0; ``[]``."""
        inverse = self.scale.double().reciprocal().float()  # in double, as torch does it
        self._found.append(multiply_and_check(gradients, inverse))
        return self._found[-1]

    def update(self) -> None:
        """All gradients of an update were seen: the scale of the next."""
        if self._found:
            torch._amp_update_scale_(
                self.scale,
                self._good_updates,
                torch.stack(self._found).sum(),
                self.growth_factor,
                self.backoff_factor,
                self.growth_interval,
            )
            self._found.clear()

    def state_dict(self) -> StateDict:
        return {"scale": float(self.scale), "good_updates": int(self._good_updates)}

    def load_state_dict(self, state: StateDict) -> None:
        self.scale.fill_(state["scale"])
        self._good_updates.fill_(state["good_updates"])
