"""Samplers by the names that configurations give them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from runner.data.prioritized import PrioritizedSampler
from runner.data.sampler import UniformSampler, WithoutReplacementSampler
from runner.data.slices import SliceSampler
from runner.data.storage import TensorStorage
from runner.spec import Sampler

SamplerName = Literal["uniform", "prioritized", "without_replacement", "slices"]

OPTIONS: dict[str, tuple[str, ...]] = {
    "prioritized": ("alpha", "beta", "beta_end", "beta_env_steps"),
    "slices": ("slice_length",),
}


def make_sampler(
    name: SamplerName,
    storage: TensorStorage,
    generator: torch.Generator,
    options: Mapping[str, Any],
    beta: Callable[[], float],
) -> Sampler:
    """The sampler called ``name``, with its own of the ``options`` that ``OPTIONS`` lists."""
    if name == "prioritized":
        return PrioritizedSampler(storage, generator, options["alpha"], beta)
    if name == "slices":
        return SliceSampler(storage, generator, options["slice_length"])
    return WithoutReplacementSampler(storage, generator) if name == "without_replacement" else UniformSampler(generator)


def check_options(name: SamplerName, given: Mapping[str, Any], batch_size: int) -> None:
    """Raise ``ValueError`` for an option that is another sampler's, or that this one cannot work with."""
    for owner, own in OPTIONS.items():
        foreign = [option for option in own if owner != name and given[option] is not None]
        if foreign:
            raise ValueError(f"source.{foreign[0]} goes with source.sampler={owner}, and not with {name}")
    length = given["slice_length"]
    if name == "slices" and length is None:
        raise ValueError("source.sampler=slices needs a source.slice_length")
    if length is not None and batch_size % length:
        raise ValueError(f"source.batch_size={batch_size} is not a multiple of source.slice_length={length}")
