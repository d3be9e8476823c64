"""The keys of a run that belong to no group: this function's signature is their schema."""

from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import Field

from runner.types import Compile, Every, NonNegativeInt, PositiveInt, StopAfter

Threads = Annotated[int, Ge(1), Le(1024)]
"""More than any machine has cores; torch would start as many as it is told."""
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:<number>")]


def root(
    seed: NonNegativeInt,
    total_frames: PositiveInt | None,
    stop_after: StopAfter,
    frame_skip: PositiveInt,
    device: Device,
    threads: Threads,
    compile: Compile,
    log_every: Every,
    resume: str | None,
    explain: bool,
    trust: list[str],
) -> dict[str, Any]:
    """The root keys as a dict; only its signature matters."""
    return dict(locals())


NAMED_NODES = ("learning", "hooks", "logger")
"""Root keys whose value is a dict of nodes by name; a name set to null is taken out."""

NEEDED_NODES = ("env", "collector", "loss", "network", "source", "optimizer", "learner", "evaluation")
"""Root keys without which there is nothing to run."""

OPTIONAL_NODES = ("exploration", "scheduler", "target_updater", "checkpoint")
"""Root keys that may be null or left out."""
