"""Which modules come and go in mid-run, and whether they can: found out before anything is trained."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from runner.config.parts import Config
from runner.learner.module import Module
from runner.spec import ConfigError, Progress

Shapes = Mapping[str, Any]
"""Of the networks and targets of a module."""


class Offer(NamedTuple):
    """A module that a hook may add: its id and tree, the module whose weights it begins with, and its shapes."""

    module_id: str
    tree: Config
    like: str | None
    shapes: Shapes


class Change(NamedTuple):
    """What a hook does: when, and to which module; it adds one where there is an offer, and else removes it.

    ``maker`` is the hook itself, which remembers as ``is_done`` that it was done.
    """

    hook: str
    unit: str
    number: float
    module_id: str
    offer: Offer | None = None
    maker: Any = None

    @property
    def is_done(self) -> bool:
        return bool(getattr(self.maker, "is_done", False))


def shapes_of(module: Module) -> Shapes:
    """What has to be the same where weights of one module are given to another."""
    return {name: _shapes(network.state_dict()) for name, network in module.networks.items()}


def _shapes(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: _shapes(value) for name, value in state.items()}
    return list(state.shape) if isinstance(state, Tensor) else None


def check_changes(present: Mapping[str, Shapes], changes: Sequence[Change], frame_skip: int, end: float) -> None:
    """Raise ``ConfigError`` for a change that would end the run once its time has come.

    Changes are made in the order of their times, which are compared as env steps where all are in those or in frames.
    Where they are in different units nobody knows, and only ids are checked.

    Args:
        present: the modules at the beginning.
        changes: in the order in which those of the same time are made.
        end: env steps of the whole run; what is to come after it does not.
    """
    known = [*present, *(change.module_id for change in changes if change.offer)]
    for change in changes:
        wanted = change.offer.like if change.offer else change.module_id
        if wanted is not None and wanted not in known:
            raise _wrong(change, f"there is no module {wanted}; there are {', '.join(known)}")
    there = dict(present)
    for change in _in_order(changes, frame_skip, end):
        if change.offer is None:
            _remove(there, change)
        else:
            _add(there, change, change.offer)


def own_env_steps(
    module_id: str, frames: Mapping[str, int], changes: Sequence[Change], frame_skip: int, begin: float, end: float
) -> int:
    """How many env steps a module plays of those of the run from ``begin`` to ``end``, at least 1.

    Args:
        frames: env steps of a batch of each module that is there at the beginning, itself among them.
        changes: of all of the run; those that are done, or whose times cannot be compared, are left out.
    """
    there, played, now = dict(frames), 0.0, begin
    for time, change in _timed(changes, frame_skip):
        if change.is_done or time >= end:
            continue
        time = max(time, begin)  # one that is due comes in this very batch
        played, now = played + (time - now) * there[module_id] / sum(there.values()), time
        if change.offer is not None:
            there[change.module_id] = frames_of(change.offer.tree)
        elif change.module_id == module_id:
            return max(int(played), 1)
        else:
            there.pop(change.module_id, None)
    return max(int(played + (end - now) * there[module_id] / sum(there.values())), 1)


def due(changes: Sequence[Change], progress: Progress) -> list[Change]:
    """Those whose time has come, and that are not done, by their times; of those at one time by their hooks' order."""
    come = [one for one in changes if not one.is_done and getattr(progress, one.unit) >= one.number]
    units = {"env_steps": 1, "frames": progress.frame_skip}
    return sorted(come, key=lambda one: one.number / units.get(one.unit, 1)) if len(_units(come)) == 1 else come


def _units(changes: Sequence[Change]) -> set[str]:
    return {"env_steps" if change.unit == "frames" else change.unit for change in changes}


def frames_of(tree: Config) -> int:
    """Env steps of a batch, which say how fast a module plays."""
    return int(tree["collector"].get("frames_per_batch") or 1)


def _in_order(changes: Sequence[Change], frame_skip: int, end: float) -> list[Change]:
    """Those within the run, by their times; none where the times cannot be compared."""
    units = _units(changes)
    if len(units) != 1:
        return []
    if units == {"env_steps"}:
        return [change for time, change in _timed(changes, frame_skip) if time <= end]
    return sorted(changes, key=lambda change: change.number)


def _timed(changes: Sequence[Change], frame_skip: int) -> list[tuple[float, Change]]:
    """Those that come at some number of env steps, or of frames, with their env steps and by them."""
    units = {"env_steps": 1, "frames": frame_skip}
    timed = [(change.number / units[change.unit], change) for change in changes if change.unit in units]
    return sorted(timed, key=lambda pair: pair[0])


def _add(there: dict[str, Shapes], change: Change, offer: Offer) -> None:
    if change.module_id in there:
        words = f"there is a module {change.module_id} at that time: remove_module takes one out"
        raise _wrong(change, f"{words}, or give this one another module_id")
    if offer.like is not None and offer.like not in there:
        raise _wrong(change, f"module {offer.like}, whose weights it is to begin with, is not there at that time")
    if offer.like is not None and offer.shapes != there[offer.like]:
        raise _wrong(change, not_alike(change.module_id, offer.like))
    there[change.module_id] = offer.shapes


def _remove(there: dict[str, Shapes], change: Change) -> None:
    if change.module_id not in there:
        raise _wrong(change, f"module {change.module_id} is not there at that time")
    if len(there) == 1:
        raise _wrong(change, f"module {change.module_id} is the last one at that time, and a run needs one")
    del there[change.module_id]


def not_alike(module_id: str, like: str) -> str:
    """That weights do not fit, in words."""
    return f"module {module_id} cannot begin with the weights of {like}: their networks are not alike"


def _wrong(change: Change, words: str) -> ConfigError:
    return ConfigError(f"hooks.{change.hook}: {words}")
