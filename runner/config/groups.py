"""Are the groups and choices that were typed there?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from runner.config.composer import Composer
from runner.config.overrides import Typed
from runner.config.report import COMMAND_LINE, Problem, choices_hint, did_you_mean, nearest
from runner.config.root import NEEDED_NODES


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
        yield Problem(item.text, COMMAND_LINE, f"there is no group {item.key}", guess)
        return
    if item.prefix == "++":
        yield Problem(item.text, COMMAND_LINE, "a group takes + or nothing before its name")
    if item.prefix == "~":
        if item.key in ("algo", *NEEDED_NODES):
            listed = f"choices: {', '.join(composer.choices(item.key))}"
            yield Problem(item.text, COMMAND_LINE, f"a run cannot do without {item.key}", listed)
        return
    choices = composer.choices(item.key)
    for value in item.values:
        for name in value if isinstance(value, list) else [value]:
            if name is not None and name not in choices:
                message = f"{item.key} has no choice {name}"
                yield Problem(f"{item.key}={name}", COMMAND_LINE, message, _hint(item, str(name), choices))


def _hint(item: Typed, name: str, choices: Sequence[str]) -> str:
    return choices_hint(name, choices) or f"choices: {', '.join(choices)}"


def _mend(item: Typed, composer: Composer) -> Typed | None:
    if item.prefix == "~":
        return None
    choices = composer.choices(item.key)
    value = item.values[0]
    guess = nearest(str(value), choices) if choices and not isinstance(value, list) else None
    return replace(item, values=(guess,), prefix=item.prefix.replace("++", "+")) if guess else None
