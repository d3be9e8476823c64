"""What happens to gradients between the backward pass and the optimizer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from runner.types import PositiveFloat

ClipBy = Literal["value", "norm", "global_norm"]
NonFinite = Literal["raise", "skip", "zero"]

LARGEST_NORM = 1e9
"""Stands in for the norm of a tensor with an infinity in it."""


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients as one vector; a NaN counts 0 and an infinity 1e9. Shape ``[]``."""
    norms = torch.stack(torch._foreach_norm(list(gradients)))
    return torch.nan_to_num(norms, nan=0.0, posinf=LARGEST_NORM).norm()


class Clip:
    """Bounds gradients, in place.

    ``value``: each element to ``[-max, max]``, but for infinities, which become NaN: they are no direction.
    ``norm``: each tensor ``g *= max / |g|`` where ``|g| > max``. ``global_norm``: with the norm N of all,
    ``g *= max / max(N + 1e-6, max)``, never up (Pascanu et al. 2013).
    """

    def __init__(self, max: PositiveFloat, by: ClipBy = "global_norm") -> None:
        if max <= 0:
            raise ValueError(f"gradients cannot be clipped to {max}: the bound must be > 0")
        if by not in ("value", "norm", "global_norm"):
            raise ValueError(f"no way to clip by {by!r}: use value, norm or global_norm")
        self.max, self.by = max, by

    def __call__(self, gradients: Sequence[Tensor]) -> Tensor:
        """Clip, and return the global norm before clipping, ``[]``."""
        gradients = list(gradients)
        before = global_norm(gradients)
        if self.by == "value":
            nothing = torch._foreach_sub(gradients, gradients)  # NaN where there is an infinity
            torch._foreach_clamp_min_(gradients, -self.max)
            torch._foreach_clamp_max_(gradients, self.max)
            torch._foreach_add_(gradients, nothing)
        elif self.by == "norm":
            norms = torch.stack(torch._foreach_norm(gradients))
            torch._foreach_mul_(gradients, list(torch.where(norms > self.max, self.max / norms, 1.0)))
        else:
            torch._foreach_mul_(gradients, self.max / torch.clamp(before + 1e-6, min=self.max))
        return before


def with_own_memory(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, ready to be changed in place: autograd may give one tensor, or an expanded one, for several."""
    seen: set[int] = set()
    owned: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None:
            if gradient.data_ptr() in seen or not gradient.is_contiguous():
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            seen.add(gradient.data_ptr())
        owned.append(gradient)
    return owned


def zero_non_finite(gradients: Sequence[Tensor]) -> None:
    """Set every NaN and infinity to 0, in place."""
    for gradient in gradients:
        torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0, out=gradient)


def multiply_and_check(gradients: Sequence[Tensor], factor: Tensor) -> Tensor:
    """Multiply by ``factor`` (``[]``), in place; returns 1 where an element was not finite, else 0, ``[]``.

    It is one pass over all of them, where asking each tensor takes twenty times as long, and waits for no device.
    """
    found = torch.zeros_like(factor)
    for alike in _by_dtype(gradients):
        torch._amp_foreach_non_finite_check_and_unscale_(alike, found, factor)
    return found


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    alike: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault(tensor.dtype, []).append(tensor)
    return list(alike.values())


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity; waits for the device."""
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())
