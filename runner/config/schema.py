"""The target's signature is the schema: every node of a resolved tree is checked against it, and its values coerced."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import ValidationError

from runner.config.injected import INJECTED
from runner.config.modules import MODULES, OF_THE_RUN, SELECTOR
from runner.config.origins import Origins
from runner.config.report import Problem, did_you_mean, nearest, show
from runner.config.root import NAMED_NODES, NEEDED_NODES, OPTIONAL_NODES
from runner.config.signature import REQUIRED, Parameter, Signature, read_signature
from runner.config.targets import TargetError
from runner.config.tree import MISSING, Unknown, has_unknown
from runner.config.words import (
    describe,
    is_factory,
    is_wrapper,
    item_hint,
    literal_keys,
    literals,
    union_members,
    unwrap,
)

ROOT = "runner.config.root.root"
TARGET = "_target_"


@lru_cache(maxsize=1024)
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))
    except Exception:  # a class pydantic cannot describe: its values are not checked
        return None


def is_node(value: Any) -> bool:
    """Whether a value names what is to be built."""
    return isinstance(value, Mapping) and TARGET in value


def _with_whole_numbers(value: Any) -> Any:
    """``1e6`` is how people write a million; where a whole number is wanted it is one."""
    if isinstance(value, list):
        return [_with_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Schema:
    """Checks a tree; ``problems`` fills up with whatever is wrong."""

    def __init__(self, origins: Origins, groups: list[str]) -> None:
        self._origins, self._groups = origins, groups
        self.problems: list[Problem] = []

    def check(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The tree with every value coerced to its hint; meaningless where problems were found."""
        tree, of_modules = self._split_modules(tree)
        signature = read_signature(ROOT)
        nodes = {key: value for key, value in tree.items() if key not in signature.parameters}
        values = {key: value for key, value in tree.items() if key in signature.parameters}
        self._find_missing("", signature, values)
        coerced = {key: self._value(key, signature.parameters[key], value) for key, value in values.items()}
        for name in NEEDED_NODES:
            if nodes.get(name) is None:
                self._report(name, "missing", f"choose one with {name}=...")
        self._find_nameless_env(nodes.get("env"))
        absent = dict.fromkeys(OPTIONAL_NODES) | {name: {} for name in NAMED_NODES}
        found = {key: self._root_node(key, value, [*nodes, *values]) for key, value in nodes.items()}
        return coerced | absent | {key: value for key, value in found.items() if value is not None} | of_modules

    def _split_modules(self, tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tree without what its learner says of modules, and that, checked: ``modules`` and which to train."""
        learner = tree.get("learner")
        if not isinstance(learner, Mapping):
            return dict(tree), {"modules": {}, SELECTOR: None}
        modules, chosen = (learner.get(name) for name in OF_THE_RUN)
        names = dict.fromkeys(modules) if isinstance(modules, Mapping) else modules
        self._coerce(MODULES, dict[str, Any] | None, names)
        self._coerce(f"learner.{SELECTOR}", list[str] | str | None, chosen)
        self._find_selector(chosen)
        checked = self._inner_nodes(MODULES, modules) if isinstance(modules, Mapping) else {}
        rest = {name: value for name, value in learner.items() if name not in OF_THE_RUN}
        return {**tree, "learner": rest}, {"modules": checked, SELECTOR: chosen}

    def _find_selector(self, chosen: Any) -> None:
        """A function that chooses modules is named as a target is."""
        try:
            if isinstance(chosen, str):
                read_signature(chosen)
        except TargetError as error:
            self._report(f"learner.{SELECTOR}", str(error))

    def _find_nameless_env(self, env: Any) -> None:
        if is_node(env) and {"id", "make"} <= set(env) and env["id"] is None and env["make"] is None:
            self._report("env.id", "missing: expected the id of an environment", "add env.id=<Name-v0>")

    def _root_node(self, key: str, value: Any, siblings: list[str]) -> Any:
        if key in NAMED_NODES and isinstance(value, Mapping):
            named = {name: node for name, node in value.items() if node is not None}
            return {name: self._needed_node(f"{key}.{name}", node) for name, node in named.items()}
        if key not in (*self._groups, *NEEDED_NODES, *NAMED_NODES):
            guess = did_you_mean(nearest(key, {*siblings, *self._groups} - {key}))
            self._report(key, "there is no such key", guess or "python run.py --help lists the keys")
            return value
        return value if value is None or isinstance(value, Unknown) else self._needed_node(key, value)

    def _needed_node(self, key: str, value: Any) -> Any:
        if is_node(value):
            return self.node(key, value)
        if not isinstance(value, Unknown):
            self._report(key, "expected a node with a _target_", f"got {show(value)}")
        return value

    def node(self, key: str, node: Mapping[str, Any], hint: Any = Any) -> dict[str, Any]:
        """Check one node against its target's signature; ``hint`` is that of the parameter it is given to."""
        target = node[TARGET]
        if not isinstance(target, str):
            if target is MISSING:
                self._report(f"{key}.{TARGET}", "missing: expected the dotted name of a class or function")
            elif not isinstance(target, Unknown):
                self._report(
                    f"{key}.{TARGET}", "expected the dotted name of a class or function", f"got {show(target)}"
                )
            return dict(node)
        try:
            signature = read_signature(target)
        except TargetError as error:
            self._report(f"{key}.{TARGET}", str(error))
            return dict(node)
        signature = signature.without_first() if is_wrapper(hint) else signature
        self._find_missing(key, signature, node)
        return {name: value if name == TARGET else self._argument(key, name, value, signature)
                for name, value in node.items()}  # fmt: skip

    def _argument(self, key: str, name: str, value: Any, signature: Signature) -> Any:
        full = f"{key}.{name}"
        parameter = signature.parameters.get(name)
        if parameter is not None and name in INJECTED:
            self._report(full, "is filled in by the builder and cannot be set")
        elif parameter is None and not (signature.takes_any and not name.startswith("_")):
            known = [other for other in signature.parameters if other not in INJECTED]
            guess = nearest(name, known)
            takes = f"{signature.target} takes {', '.join(known) or 'nothing'}"
            is_tuned = "/tuned/" in self._origins.of(full)
            hint = "tuned=null leaves the tuned values out" if is_tuned else takes
            self._report(full, "there is no such parameter", did_you_mean(f"{key}.{guess}") if guess else hint)
        return self._value(full, parameter or Parameter(name), value)

    def _find_missing(self, key: str, signature: Signature, given: Mapping[str, Any]) -> None:
        for name, parameter in signature.parameters.items():
            if parameter.default is REQUIRED and name not in INJECTED and name not in given:
                full = f"{key}.{name}" if key else name
                prefix = "" if not key else "+"
                self._report(full, f"missing: expected {describe(parameter.hint)}", f"add {prefix}{full}=...")

    def _value(self, key: str, parameter: Parameter, value: Any) -> Any:
        if value is MISSING:
            self._report(key, f"missing: expected {describe(parameter.hint)}", f"add {key}=...")
            return value
        value = self._inner_nodes(key, _without_null_units(value, parameter.hint), parameter.hint)
        if has_unknown(value):
            return value
        if _contains_node(value):
            if not _takes_nodes(parameter.hint):
                self._report(f"{key} = {show(value)}", f"expected {describe(parameter.hint)}", key=key)
            return value
        return self._coerce(key, parameter.hint, value)

    def _inner_nodes(self, key: str, value: Any, hint: Any = Any) -> Any:
        if is_node(value):
            return self.node(key, value, hint)
        if isinstance(value, Mapping):
            return {name: self._inner_nodes(f"{key}.{name}", item, item_hint(hint)) for name, item in value.items()}
        if isinstance(value, list):
            return [self._inner_nodes(f"{key}.{index}", item, item_hint(hint)) for index, item in enumerate(value)]
        if value is MISSING:
            self._report(key, "missing", f"add {key}=...")
        return value

    def _coerce(self, key: str, hint: Any, value: Any) -> Any:
        adapter = _adapter(hint)
        if adapter is None:
            return value
        for candidate in (value, _with_whole_numbers(value)):
            try:
                return adapter.validate_json(json.dumps(candidate), strict=True)
            except (ValidationError, TypeError):
                continue
        if not self._find_inside(key, hint, value):
            self._report(f"{key} = {show(value)}", f"expected {describe(hint)}", _example(key, hint, value), key)
        return value

    def _find_inside(self, key: str, hint: Any, value: Any) -> bool:
        """Report what is wrong with the values of a mapping one by one, if that is what is wrong with it."""
        inner, (names, is_one) = item_hint(hint), literal_keys(hint)
        if not isinstance(value, Mapping) or inner is Any or is_one:
            return False
        before = len(self.problems)
        for name, item in value.items():
            if names and name not in names:
                guess, takes = nearest(name, names), f"{key} takes {', '.join(names)}"
                hint = did_you_mean(f"{key}.{guess}") if guess else takes
                self._report(f"{key}.{name}", "there is no such key", hint)
            else:
                self._coerce(f"{key}.{name}", inner, item)
        return len(self.problems) > before

    def _report(self, shown: str, message: str, hint: str = "", key: str | None = None) -> None:
        self.problems.append(Problem(shown, self._origins.of(key or shown), message, hint, key or shown))


def _without_null_units(value: Any, hint: Any) -> Any:
    """A unit set to null gives way to another: ``every: {env_steps: null, updates: 100}``."""
    if not isinstance(value, Mapping) or not literal_keys(hint)[0]:
        return value
    return {unit: number for unit, number in value.items() if number is not None}


def _example(key: str, hint: Any, value: Any) -> str:
    """What may have been meant by a value that is refused."""
    units, _ = literal_keys(hint)
    if units and isinstance(value, int | float):
        return f"for example {key}.{units[0]}={show(value)}"
    return did_you_mean(nearest(value, literals(hint))) if isinstance(value, str) else ""


def _contains_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_node(value) or any(_contains_node(item) for item in value.values())
    return isinstance(value, list) and any(_contains_node(item) for item in value)


def _takes_nodes(hint: Any) -> bool:
    """Whether a built object could be meant: anything but plain values."""
    plain = (bool, int, float, str, type(None))
    members = [unwrap(member)[0] for member in union_members(unwrap(hint)[0])]
    return any(is_factory(member) or not (member in plain or "Literal" in str(member)) for member in members)
