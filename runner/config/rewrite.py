"""Small conveniences: overrides that a person may type, turned into those that Hydra needs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.config.composer import Composer, Composition, as_plain
from runner.config.keys import find_unit, units_at
from runner.config.overrides import Typed, parse_override
from runner.config.report import show
from runner.config.root import NAMED_NODES
from runner.config.schema import TARGET
from runner.config.signature import read_signature
from runner.config.targets import TargetError
from runner.config.tree import ABSENT, lookup


def without_null_groups(typed: Sequence[Typed]) -> list[Typed]:
    """``group=null`` takes a group out; Hydra spells that ``~group``, or ``group=[]`` where there may be several."""
    return [_without_group(item) if _is_null_group(item) else item for item in typed]


def _is_null_group(item: Typed) -> bool:
    return item.is_group and item.prefix in ("", "~") and item.values == (None,) and not item.package


def _without_group(item: Typed) -> Typed:
    if item.key in NAMED_NODES:
        return replace(item, text=f"{item.key}=[]", prefix="", values=([],))
    return item.rewritten(f"~{item.key}", "~")


def replace_units(typed: Sequence[Typed], tree: Mapping[str, Any], composer: Composer) -> list[Typed]:
    """The unit that is typed replaces the one in the file: ``log_every.updates=10``."""
    wanted: dict[str, set[str]] = {}
    result = []
    for item in typed:
        found = None if item.is_group or item.prefix == "~" else _typed_units(item, tree)
        if found:
            wanted.setdefault(found[0], set()).update(found[1])
            item = item.rewritten(f"++{item.text.lstrip('+')}", "++")
        result.append(item)
    return [*_removals(wanted, tree, composer), *result]


def _removals(wanted: Mapping[str, set[str]], tree: Mapping[str, Any], composer: Composer) -> Iterator[Typed]:
    for parent, units in wanted.items():
        present = lookup(tree, parent)
        for unit in present if isinstance(present, dict) and units_at(tree, parent)[1] else ():
            if unit not in units and present[unit] is not None:
                yield parse_override(f"~{parent}.{unit}", composer)


def _typed_units(item: Typed, tree: Mapping[str, Any]) -> tuple[str, set[str]] | None:
    found = find_unit(tree, item.key)
    unit = item.key.rpartition(".")[2]
    if found and unit in found[1]:
        return found[0], {unit}
    units, _ = units_at(tree, item.key)
    named = {str(key) for value in item.values if isinstance(value, dict) for key in value}
    return (item.key, named) if units and named and named <= set(units) else None


class Rewriter:
    """Collects the overrides to add and the lines that tell the user what was left out."""

    def __init__(self, composer: Composer, composition: Composition) -> None:
        self._composer, self._composition = composer, composition
        self._tree = as_plain(composition.tree)
        self.added: list[Typed] = []
        self.notices: list[str] = []

    def _add(self, text: str) -> None:
        self.added.append(parse_override(text, self._composer))

    def other_env(self, typed: Sequence[Typed]) -> bool:
        """Values tuned for a named environment are left out where another id is typed; true if they were."""
        named = lookup(self._tree, "env.id")
        other = [value for item in typed if item.key == "env.id" and not item.is_group
                 for value in item.values if value != named]  # fmt: skip
        chose_tuned = any(item.is_group and item.key == "tuned" for item in typed)
        tuned = self._composition.tuned_files()
        if not other or named in (ABSENT, "???") or chose_tuned or not tuned:
            return False
        self._add("~tuned")
        env = self._composition.choices.get("env")
        self.notices.append(f"env.id={other[0]}: the values tuned for {env} ({tuned[0].label}) are left out")
        return True

    def stale_tuned(self, typed: Sequence[Typed]) -> None:
        """A tuned value for one choice of a group is left out where the user chose another."""
        for group in {item.key for item in typed if item.is_group and not item.is_sweep and item.key != "tuned"}:
            node = lookup(self._tree, group)
            if isinstance(node, dict) and isinstance(node.get(TARGET), str):
                self._drop_unknown(group, node[TARGET], list(node))

    def _drop_unknown(self, group: str, target: str, names: list[str]) -> None:
        try:
            signature = read_signature(target)
        except TargetError:
            return
        for name in names:
            settings = self._composition.origins.settings.get(f"{group}.{name}", [])
            only_tuned = settings and all(setting.file.config_path.startswith("tuned/") for setting in settings)
            if only_tuned and name not in signature.parameters and not signature.takes_any:
                self._add(f"~{group}.{name}")
                choice = show(self._composition.choices.get(group)).strip('"')
                self.notices.append(f"{group}={choice}: {group}.{name} ({settings[-1]}) does not apply and is left out")
