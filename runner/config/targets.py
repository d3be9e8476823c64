"""Targets: dotted names that become classes and functions, and which of them a stored run may name."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from runner.config.report import did_you_mean, nearest
from runner.config.source import split_target, submodules

OURS = ("runner.", "hooks.")
NOT_FOR_RUNS = ("runner.config", "runner.sweeps", "runner.runs", "runner.auto", "runner.__main__")
"""Our own modules that start runs or make folders: no stored run has a reason to name them."""
CONF = Path(__file__).resolve().parents[2] / "conf"
_TARGET = re.compile(r"_target_:\s*([\w.]+)")
LIBRARIES = ("torch.nn.", "torch.optim.", "gymnasium.envs.")
WRAPPERS = frozenset(
    f"gymnasium.wrappers.{name}"
    for name in """AddRenderObservation AtariPreprocessing ClipAction ClipReward DelayObservation DiscretizeAction
    DiscretizeObservation DtypeObservation FlattenObservation FrameStackObservation GrayscaleObservation RepeatAction
    RescaleAction RescaleObservation ReshapeObservation ResizeObservation StickyAction TimeAwareObservation
    TimeLimit""".split()
)
"""Those of gymnasium's wrappers that do nothing but wrap; others write videos and statistics wherever they are told."""


class TargetError(Exception):
    """A ``_target_`` does not name a class or function."""


def resolve_target(target: str) -> Any:
    """Import the object of a dotted name; raises ``TargetError`` with the nearest name."""
    place = split_target(target)
    if place is None:
        first = target.partition(".")[0]
        raise TargetError(f"{target} cannot be found: there is no module {first} with such a name in it")
    module_name, names = place
    found = _import(module_name)
    for name in names:
        if not hasattr(found, name):
            raise TargetError(no_such_name(dir(found), module_name, [name]))
        found = getattr(found, name)
    if not callable(found) or inspect.ismodule(found):
        raise TargetError(f"{target} is neither a class nor a function")
    return found


def _import(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise TargetError(f"importing {module_name} failed: {type(error).__name__}: {error}") from error


def no_such_name(known: Iterable[str], module_name: str, names: Sequence[str]) -> str:
    """That a module lacks a name, and which it has that is most like it."""
    if names[0] in (modules := submodules(module_name)):
        return f"{module_name}.{names[0]} is a module: a target is a class or function in it"
    public = [other for other in (*known, *modules) if not other.startswith("_")]
    return f"{module_name} has no {names[0]}; {did_you_mean(nearest(names[0], public))}".rstrip("; ")


def is_nameable(target: str, trust: Sequence[str]) -> bool:
    """Whether a stored run may have this target looked up at all: judged by the name, before anything is imported.

    What a module has in it beyond its own names is whatever it imports, and what that imports, and in the end anything.
    """
    if begins(target, trust):
        return True
    if target in WRAPPERS:
        return True
    place = split_target(target) if target.startswith((*OURS, *LIBRARIES)) else None
    return place is not None and len(place[1]) == 1 and not begins(target, NOT_FOR_RUNS)


def is_allowed(found: Any, trust: Sequence[str]) -> bool:
    """Whether a stored run may build this object: judged by where it is really defined, whatever it was called.

    Ours: what our own configuration files name, and nothing else of ours, for some of it writes files. torch.nn,
    torch.optim, gymnasium's environments and harmless wrappers: classes. Trusted packages: classes and functions.
    """
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    if not isinstance(module, str) or not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    if getattr(sys.modules.get(module), name, None) is not found:
        return False
    if begins(module, trust):
        return True
    is_wrapper = module.startswith("gymnasium.wrappers.") and f"gymnasium.wrappers.{name}" in WRAPPERS
    return f"{module}.{name}" in _our_targets() or (inspect.isclass(found) and (is_wrapper or _is_library_part(module)))


@lru_cache(maxsize=1)
def _our_targets() -> frozenset[str]:
    """Where the targets that the files in ``conf/`` name are really defined."""
    named = {target for path in CONF.rglob("*.yaml") for target in _TARGET.findall(path.read_text())}
    found = [resolve_target(target) for target in named if target.startswith(OURS)]
    return frozenset(f"{one.__module__}.{one.__qualname__}" for one in found)


def _is_library_part(module: str) -> bool:
    return module.startswith(LIBRARIES)


def begins(name: str, packages: Sequence[str]) -> bool:
    """Whether a dotted name is one of these packages, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)
