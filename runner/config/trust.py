"""What the configuration in a run's folder may name: nobody vouches for it, so it is judged before it is looked up."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from runner.config.modules import SELECTOR
from runner.config.report import Problem
from runner.config.schema import TARGET
from runner.config.targets import LIBRARIES, TargetError, begins, is_allowed, is_nameable, resolve_target

IDS = ("id", "env_name")
"""Settings that may name an environment as ``module:Id``, whose module gymnasium would import."""
ADDRESSES = ("tracking_uri",)
"""Settings that say where to connect to: read back from a folder, they would choose a host, or a file, for us."""


def nodes_of(tree: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping of a tree with its key."""
    if isinstance(tree, Mapping):
        yield key, tree
        for name, value in tree.items():
            yield from nodes_of(value, f"{key}.{name}".strip("."))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from nodes_of(value, f"{key}.{index}")


def targets_of(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` of a tree with the key of its node, and the function that chooses modules with its own."""
    for place, node in nodes_of(tree, key):
        if TARGET in node:
            yield place, node[TARGET]
        if isinstance(node.get(SELECTOR), str):
            yield f"{place}.{SELECTOR}", node[SELECTOR]


def unnameable_problems(
    config: Mapping[str, Any], trust: list[str], named: set[str], typed: Iterable[str], origin: str
) -> Iterator[Problem]:
    """What a stored run may not name: judged by the words alone, nothing is imported, opened or connected to.

    Args:
        named: the keys of nodes whose targets this command line names itself; those are trusted.
        typed: the keys that this command line sets.
    """
    for key, target in targets_of(config):
        if key not in named and not (isinstance(target, str) and is_nameable(target, trust)):
            yield _refusal(key, str(target), trust, origin)
    for key, node in nodes_of(config):
        for name in IDS:
            package = _package_of(node.get(name))
            if package is not None and f"{key}.{name}" not in typed and not begins(package, trust):
                yield _refusal(f"{key}.{name}", package, trust, origin)
        for name in ADDRESSES:
            if node.get(name) is not None and f"{key}.{name}" not in typed:
                yield Problem(f"{key}.{name}", origin, "an address is not read back from a run", "type it")
        yield from _paths(key, node, trust, typed, origin)


def packages_to_trust(config: Mapping[str, Any]) -> list[str]:
    """What resuming a run with this configuration has to be told to trust."""
    targets = [target for _, target in targets_of(config) if not is_nameable(target, ())]
    ids = [node.get(name) for _, node in nodes_of(config) for name in IDS]
    packages = [package for id in ids if (package := _package_of(id))]
    return sorted({name.partition(".")[0] for name in (*targets, *packages)})


def _package_of(id: Any) -> str | None:
    """The module that an environment's id ``module:Id`` imports, unless it is gymnasium."""
    package, colon, _ = id.partition(":") if isinstance(id, str) else ("", "", "")
    return package if colon and package != "gymnasium" else None


def _paths(key: str, node: Mapping[str, Any], trust: list[str], typed: Iterable[str], origin: str) -> Iterator[Problem]:
    """Files that a library would open: the parts of ours that take a path are not among those a run may name."""
    is_library = isinstance(node.get(TARGET), str) and node[TARGET].startswith(LIBRARIES)
    for name, value in _texts(node if is_library else node.get("kwargs"), key if is_library else f"{key}.kwargs"):
        if (
            name not in typed
            and name.rpartition(".")[2] != TARGET
            and (set("/\\") & set(value) or value[:1] in (".", "~"))
        ):
            hint = f"type it, if you know it: {name}=..."
            yield Problem(name, origin, f"a path or an address is not read back from a run ({value})", hint)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}")


def forbidden_problems(config: Mapping[str, Any], trust: list[str], named: set[str], origin: str) -> Iterator[Problem]:
    """Targets that turn out to be something a stored run may not build; imports the modules they name."""
    for key, target in targets_of(config):
        if key in named:
            continue
        try:
            allowed = is_allowed(resolve_target(target), trust)
        except TargetError:
            allowed = False
        if not allowed:
            yield _refusal(key, target, trust, origin)


def _refusal(key: str, target: str, trust: list[str], origin: str) -> Problem:
    package = target.partition(".")[0]
    is_package = package.isidentifier() and package not in sys.stdlib_module_names
    hint = f"if that is your own package, add 'trust=[{','.join([*trust, package])}]'" if is_package else ""
    return Problem(key, origin, f"a resumed run may not name {target}", hint)
