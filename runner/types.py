"""Annotations that configuration values are checked against; free of torch, so that a bad value is answered at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Discount = Annotated[float, Ge(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]

Unit = Literal["env_steps", "frames", "updates", "episodes", "batches", "seconds"]
Every = Annotated[dict[Unit, PositiveFloat], Len(1, 1)]
"""One unit and how many of it, for example ``{env_steps: 1000}``."""

KeyPath = str | list[str]
"""An entry of a batch, for example ``action`` or ``[next, reward]``."""

SubTrajectory = Annotated[int, Ge(-1)]
"""Steps of a part of a trajectory; -1 or 0 for single steps."""

MINARI = "minari:"
"""How paths of datasets begin that are none, but names of Minari's."""

LossFunction = Literal["l2", "smooth_l1"]
"""Squared errors, or Huber's with threshold 1."""

Compile = Literal["none", "trace", "update"]
"""How updates are computed: by autograd, by recorded gradients (the same bits), or as one compiled function."""

PrecisionName = Literal["fp32", "bf16", "fp16"]
"""The number format in which updates call networks."""

StopAfter = dict[Literal["env_steps", "updates", "episodes", "seconds"], PositiveFloat]


@dataclass(frozen=True)
class InWords:
    """What a message says of a hint, where its own words would not be plain."""

    description: str


@dataclass(frozen=True)
class NotBuilt:
    """Marks values whose nodes are handed over as they are, for who builds them when the time comes."""


ModuleTree = Annotated[dict[str, Any], NotBuilt(), InWords("a mapping of groups to what a module has otherwise")]
"""What one of several modules consists of, by group."""

OptimizationOptions = Annotated[
    dict[Literal["every", "lr", "clip"], PositiveFloat | None],
    InWords("a mapping of every, lr and clip to numbers > 0"),
]
"""What one of several optimizers does otherwise than the others."""

Breakpoints = Annotated[list[tuple[NonNegativeFloat, float]], Len(2)]
"""A piecewise-linear schedule ``[[t, value], ...]`` over env steps."""

Factory = Callable[[], Any]
"""A node given to a parameter of this type is not built once but handed over as a function that builds it anew."""

Ranges = dict[str, Annotated[list[float], Len(2, 2)]]
"""The lowest and the highest value of named numbers."""

Wrapper = Callable[[Any], Any]
"""A node given to a parameter of this type is handed over as a function of what becomes its target's first argument."""

Wrappers = dict[str, Wrapper | None]
"""Named wrappers, applied in their order; one set to null is left out."""
