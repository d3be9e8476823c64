"""Are the groups and choices that were typed there?"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from runner.config.composer import Composer
from runner.config.overrides import Typed
from runner.config.report import Problem, choices_hint, did_you_mean, nearest, show
from runner.config.root import NAMED_NODES, NEEDED_NODES, OPTIONAL_NODES
from runner.config.tree import ABSENT, lookup

PLUGINS = ("joblib", "submitit", "optuna")
"""Sweepers and launchers that are installed as extras."""


def choose(item: Typed) -> list[str]:
    """The override of a group as Hydra reads it, once for every value of a sweep."""
    if item.prefix == "~":
        return [item.text]
    name = f"{item.prefix}{item.key}{f'@{item.package}' if item.package else ''}"
    return [f"{name}={_written(value)}" for value in item.values]


def _written(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else "null" if value is None else str(value)


def usable_choices(typed: Sequence[Typed], composer: Composer) -> tuple[list[Typed], list[Problem]]:
    """A problem for every bad choice, which is replaced by its nearest so that the rest can still be checked."""
    usable, problems = [], []
    for item in typed:
        found = list(_group_problems(item, composer)) if item.is_group else []
        problems += found
        mended = _mend(item, composer) if found else item
        usable += [mended] if mended else []
    return usable, problems


def _group_problems(item: Typed, composer: Composer) -> Iterator[Problem]:
    if not composer.is_group(item.key):
        guess = did_you_mean(nearest(item.key, composer.groups()))
        yield item.problem(item.text, f"there is no group {item.key}", guess)
        return
    if item.prefix == "++":
        yield item.problem(item.text, "a group takes + or nothing before its name")
    if item.prefix == "~" or item.values == (None,):
        if item.key in ("algo", *NEEDED_NODES):
            listed = f"choices: {', '.join(composer.choices(item.key))}"
            yield item.problem(item.text, f"a run cannot do without {item.key}", listed)
        return
    choices = composer.choices(item.key)
    for value in item.values:
        if isinstance(value, list) and (twice := [name for name in value if value.count(name) > 1]):
            yield item.problem(item.text, f"names {twice[0]} twice")
        for name in value if isinstance(value, list) else [value]:
            if name is not None and name not in choices:
                shown = show(name).strip('"')
                message = f"{item.key} has no choice {shown}"
                yield item.problem(f"{item.key}={shown}", message, _hint(item, shown, choices))


def _hint(item: Typed, name: str, choices: Sequence[str]) -> str:
    usual = choices_hint(name, choices) or f"choices: {', '.join(choices)}"
    if item.key == "env" and re.search(r"-v\d+$", name):
        return f"an id of gymnasium is typed as env=gym env.id={name}"
    if name.lower() in ("none", "false", "off", "no") and item.key not in NEEDED_NODES:
        return f"{item.key}=null leaves it out; {usual}"
    if item.key.startswith("hydra/") and name in PLUGINS:
        return f"it comes with pip install 'hookline[{name}]'"
    return usual


def _mend(item: Typed, composer: Composer) -> Typed | None:
    if item.prefix == "~" or not item.values:
        return None
    choices = composer.choices(item.key)
    typed = item.values[0]
    meant = [nearest(str(name), choices) for name in (typed if isinstance(typed, list) else [typed])]
    guesses = list(dict.fromkeys(name for name in meant if name))
    value = guesses if isinstance(typed, list) else next(iter(guesses), None)
    return replace(item, values=(value,), prefix=item.prefix.replace("++", "")) if guesses else None


def unchosen_keys(group: str, tree: Mapping[str, Any], composer: Composer) -> dict[str, str]:
    """The keys that other choices of a group would bring, and what to type for them."""
    if group not in (*NEEDED_NODES, *OPTIONAL_NODES, *NAMED_NODES):
        return {}
    chosen: Any = tree.get(group)
    names = set(chosen) if isinstance(chosen, Mapping) else set()
    brings = {choice: composer.keys_of(f"{group}/{choice}") for choice in composer.choices(group)}
    active = _active({choice: set(keys) for choice, keys in brings.items()}, group, tree) if names else []
    found: dict[str, str] = {}
    for choice, keys in brings.items():
        wanted = f"[{','.join([*active, choice])}]" if group in NAMED_NODES else choice
        for key in keys if choice not in active else ():
            found.setdefault(f"{group}.{key}", f"{group}={wanted}")
    return {key: override for key, override in found.items() if lookup(tree, key) is ABSENT}


def _active(brings: Mapping[str, set[str]], group: str, tree: Mapping[str, Any]) -> list[str]:
    """The choices that the items there may be from: where one has all the keys of another, only that one."""
    there = {
        choice: keys
        for choice, keys in brings.items()
        if all(lookup(tree, f"{group}.{key}") is not ABSENT for key in keys)
    }
    largest: list[str] = []
    for choice in sorted(there, key=lambda one: -len(there[one])):
        if not any(there[choice] <= there[other] for other in largest):
            largest.append(choice)
    return sorted(largest)
