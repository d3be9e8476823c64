"""Does each typed key exist? Answered from the tree that the choices of groups give, and from the signatures."""

from collections.abc import Mapping
from typing import Any

from runner.config.injected import INJECTED
from runner.config.origins import Origins
from runner.config.overrides import Typed
from runner.config.report import COMMAND_LINE, Problem, did_you_mean, nearest, nearest_key
from runner.config.schema import ROOT, TARGET
from runner.config.signature import Parameter, Signature, read_signature
from runner.config.targets import TargetError
from runner.config.tree import ABSENT, all_keys, lookup
from runner.config.words import describe, literal_keys


def parameter_at(tree: Mapping[str, Any], key: str) -> tuple[Parameter | None, list[str]]:
    """The parameter that a key belongs to, and the rest of the key inside its value."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        node = lookup(tree, ".".join(parts[:depth]))
        signature = _signature(ROOT if depth == 0 else node.get(TARGET) if isinstance(node, Mapping) else None)
        if signature:
            parameter = signature.parameters.get(parts[depth])
            if parameter is None and signature.takes_any:
                parameter = Parameter(parts[depth])
            return parameter, parts[depth + 1 :]
    return None, []


def _signature(target: Any) -> Signature | None:
    try:
        return read_signature(target) if isinstance(target, str) else None
    except TargetError:
        return None  # reported with the node


def units_at(tree: Mapping[str, Any], key: str) -> tuple[tuple[str, ...], bool]:
    """The units that the value at this key may name, and whether it names exactly one."""
    parameter, rest = parameter_at(tree, key)
    return literal_keys(parameter.hint) if parameter and not rest else ((), False)


def find_unit(tree: Mapping[str, Any], key: str) -> tuple[str, tuple[str, ...], bool] | None:
    """For a key such as ``log_every.updates``: its parent, the units allowed there, and whether one excludes others."""
    parent = key.rpartition(".")[0]
    units, one = units_at(tree, parent) if parent else ((), False)
    return (parent, units, one) if units else None


def check_key(item: Typed, tree: Mapping[str, Any], origins: Origins, extra: list[str]) -> Problem | None:
    """A problem where Hydra would refuse the key, or ``None``. ``extra`` are the names of groups."""
    value = lookup(tree, item.key)
    if item.prefix == "++":
        return _unit_problem(item, tree)
    if item.prefix == "+":
        if value is ABSENT or value is None or isinstance(value, Mapping | list):
            return _unit_problem(item, tree) or _parent_problem(item, tree, extra)
        where = f"is already set ({origins.of(item.key)})"
        return Problem(item.key, COMMAND_LINE, where, f"leave out the +: {item.text.lstrip('+')}")
    if value is ABSENT:
        return _unit_problem(item, tree) or _absent(item, tree, extra)
    if item.prefix == "~" and value is None:
        return Problem(f"~{item.key}", COMMAND_LINE, "there is nothing to take out: it is null")
    return None


def _unit_problem(item: Typed, tree: Mapping[str, Any]) -> Problem | None:
    found = find_unit(tree, item.key)
    unit = item.key.rpartition(".")[2]
    if found is None or unit in found[1]:
        return None
    parent, units, _ = found
    guess = nearest(unit, units)
    allowed = f"{parent} takes {', '.join(units)}"
    hint = f"{did_you_mean(f'{parent}.{guess}')} {allowed}" if guess else allowed
    return Problem(item.key, COMMAND_LINE, f"there is no unit {unit}", hint)


def _parent_problem(item: Typed, tree: Mapping[str, Any], extra: list[str]) -> Problem | None:
    parent = item.key.rpartition(".")[0]
    parameter, _ = parameter_at(tree, item.key)
    if not parent or parameter is not None or isinstance(lookup(tree, parent), Mapping):
        return None  # a name that the node's signature does not know is reported with the node
    return _absent(item, tree, extra)


def _absent(item: Typed, tree: Mapping[str, Any], extra: list[str]) -> Problem:
    parent = _deepest_parent(tree, item.key)
    if parent and not isinstance(lookup(tree, parent), Mapping | list):
        return Problem(item.key, COMMAND_LINE, f"{parent} is a value, it has no keys in it")
    parameter, rest = parameter_at(tree, item.key)
    if parameter is not None and item.prefix != "~" and parameter.name not in INJECTED:
        takes = f"{'.'.join(item.key.split('.')[: -len(rest) or None])} takes {describe(parameter.hint)}"
        return Problem(item.key, COMMAND_LINE, f"is not in the configuration yet; {takes}", f"add it with +{item.text}")
    return Problem(f"{item.prefix}{item.key}", COMMAND_LINE, "there is no such key", _guess(item, tree, extra))


def _deepest_parent(tree: Mapping[str, Any], key: str) -> str:
    parts = key.split(".")
    return next((".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)
                 if lookup(tree, ".".join(parts[:n])) is not ABSENT), "")  # fmt: skip


def _guess(item: Typed, tree: Mapping[str, Any], extra: list[str]) -> str:
    parent = _deepest_parent(tree, item.key)
    node = lookup(tree, parent) if parent else {}
    signature = _signature(node.get(TARGET)) if isinstance(node, Mapping) else None
    unlisted = [f"{parent}.{name}" for name in signature.parameters if name not in INJECTED] if signature else []
    listed = [*all_keys(tree), *extra]
    guess = nearest_key(item.key, [*listed, *unlisted])
    return did_you_mean(guess if guess is None or guess in listed else f"+{guess}")
