"""Values that change over a run, as pure functions of a counter: nothing to save, nothing advanced by reading."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import cos, pi
from typing import Protocol

from runner.spec import Progress
from runner.types import Breakpoints, NonNegativeFloat, PositiveFloat


class Schedule(Protocol):
    """Learning rate at ``env_steps``, given the one that the optimizer was configured with."""

    def __call__(self, initial: float, env_steps: int) -> float: ...


def linear(start: float, end: float, duration: float, now: float) -> float:
    """A straight line from ``start`` at 0 to ``end`` at ``duration``, and ``end`` ever after."""
    return end if now >= duration else start + (end - start) * now / duration


def piecewise(points: Sequence[Sequence[float]], now: float) -> float:
    """Straight lines between ``[t, value]`` points; the last value ever after."""
    index = bisect_right([point[0] for point in points], now) - 1
    if index == len(points) - 1:
        return points[-1][1]
    (t0, v0), (t1, v1) = points[index], points[index + 1]
    return v0 + (now - t0) / (t1 - t0) * (v1 - v0)


def check_points(points: Sequence[Sequence[float]]) -> None:
    """Raise ``ValueError`` unless there are two or more ``[t, value]`` pairs whose times begin at 0 and grow."""
    if isinstance(points, str) or not isinstance(points, Sequence) or len(points) < 2:
        raise ValueError(f"a schedule needs two or more [t, value] points; got {points}")
    if any(not isinstance(point, list | tuple) or len(point) != 2 for point in points):
        raise ValueError(f"every point of a schedule is a pair [t, value]; got {points}")
    times = [point[0] for point in points]
    if times[0] != 0:
        raise ValueError(f"a schedule begins at t = 0; its first point is {list(points[0])}")
    if not all(later > earlier for earlier, later in pairwise(times)):
        raise ValueError(f"the times of a schedule must grow; got {times}")


class OverUpdates:
    """A schedule read at the number of updates, for runs that play no env steps."""

    def __init__(self, schedule: Schedule, progress: Progress) -> None:
        self.schedule, self.progress = schedule, progress

    def __call__(self, initial: float, env_steps: int) -> float:
        return self.schedule(initial, self.progress.updates)


def on_the_axis_of(progress: Progress, schedule: Schedule | None) -> Schedule | None:
    """The schedule as it is, or over updates where the run is counted in those."""
    return OverUpdates(schedule, progress) if schedule is not None and progress.axis == "updates" else schedule


class OverOwnEnvSteps:
    """A schedule read at the env steps of one module, where others play beside it."""

    def __init__(self, schedule: Schedule, progress: Progress) -> None:
        self.schedule, self.progress = schedule, progress

    def __call__(self, initial: float, env_steps: int) -> float:
        return self.schedule(initial, self.progress.env_steps)


class Constant:
    """The configured value throughout."""

    def __call__(self, initial: float, env_steps: int) -> float:
        return initial


def over_own_env_steps(progress: Progress, schedule: Schedule | None) -> Schedule | None:
    """The schedule at a module's own progress; a constant one, or none, as it is."""
    return schedule if schedule is None or isinstance(schedule, Constant) else OverOwnEnvSteps(schedule, progress)


class Linear:
    """From the configured value to ``end`` over ``env_steps`` (``None``: over the whole run)."""

    def __init__(self, total_env_steps: int, end: NonNegativeFloat, env_steps: PositiveFloat | None) -> None:
        self.end, self.duration = end, env_steps or total_env_steps

    def __call__(self, initial: float, env_steps: int) -> float:
        return linear(initial, self.end, self.duration, env_steps)


class Cosine:
    """Half a cosine wave from the configured value to ``end`` (Loshchilov & Hutter 2017, eq. 5 without restarts)."""

    def __init__(self, total_env_steps: int, end: NonNegativeFloat, env_steps: PositiveFloat | None) -> None:
        self.end, self.duration = end, env_steps or total_env_steps

    def __call__(self, initial: float, env_steps: int) -> float:
        done = min(env_steps / self.duration, 1.0)
        return self.end + (initial - self.end) * (1 + cos(pi * done)) / 2


class Piecewise:
    """The values of ``points``, ``[[t, value], ...]`` over env steps, whatever was configured."""

    def __init__(self, points: Breakpoints) -> None:
        check_points(points)
        self.points = [tuple(point) for point in points]

    def __call__(self, initial: float, env_steps: int) -> float:
        return piecewise(self.points, env_steps)
