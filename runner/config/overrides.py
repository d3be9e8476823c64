"""What was typed, parsed with Hydra's own grammar and sorted into groups, values and Hydra's settings."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner.config.composer import Composer
from runner.config.report import COMMAND_LINE, Problem
from runner.config.root import NAMED_NODES
from runner.config.tree import all_keys

MOST_VALUES = 200
"""Of a longer sweep over one key, only this many values are checked in advance."""


EXAMPLE = "quote values with spaces or special characters: key='\"a value\"'"


@dataclass(frozen=True)
class Typed:
    """One override; ``prefix`` is what stands before the key: nothing, ``+``, ``++`` or ``~``.

    ``values`` holds every value of a sweep, otherwise the one value. ``text`` is what Hydra will be given. ``origin``
    says where it was typed.
    """

    text: str
    key: str
    prefix: str
    values: tuple[Any, ...]
    is_group: bool
    is_sweep: bool
    package: str = ""
    origin: str = COMMAND_LINE
    is_interval: bool = False

    @property
    def is_hydra(self) -> bool:
        return self.key.startswith(("hydra.", "hydra/"))

    def rewritten(self, text: str, prefix: str) -> "Typed":
        return replace(self, text=text, prefix=prefix)

    def problem(self, shown: str, message: str, hint: str = "") -> Problem:
        """What is wrong with this override."""
        return Problem(shown, self.origin, message, hint)

    def keys(self) -> Iterator[str]:
        """The dotted keys that this override sets."""
        yield self.key
        for value in self.values:
            if isinstance(value, dict):
                yield from all_keys(value, f"{self.key}.")


def parse_override(text: str, composer: Composer) -> Typed:
    """Parse one override; raises ``HydraException`` for bad syntax."""
    override = OverridesParser.create().parse_rule(text, "override")
    assert isinstance(override, Override)
    if not override.key_or_group:
        raise ValueError("nothing stands before the =")
    if override.package == "":
        raise ValueError("nothing stands after the @")
    prefix = override.get_key_element().removesuffix(f"@{override.package}").removesuffix(override.key_or_group)
    is_dict = isinstance(override.value(), dict)
    is_group = override.package is not None or (composer.is_group(override.key_or_group) and not is_dict)
    values = tuple(_values(override, composer))
    typed = Typed(text, override.key_or_group, prefix, values, is_group, override.is_sweep_override())
    return replace(typed, package=override.package or "", is_interval=isinstance(override._value, IntervalSweep))


def _values(override: Override, composer: Composer) -> Iterator[Any]:
    value = override._value
    if isinstance(value, Glob):
        yield from value.filter(composer.choices(override.key_or_group))
    elif isinstance(value, IntervalSweep):
        yield from (value.start, value.end)
    elif isinstance(value, Sweep | RangeSweep):
        yield from itertools.islice(map(Override._convert_value, override.sweep_iterator()), MOST_VALUES)
    elif override.is_sweep_override():
        yield from map(Override._convert_value, value)  # type: ignore[arg-type]
    else:
        yield override.value()


def parse_overrides(
    texts: Sequence[str], composer: Composer, multirun: bool, origin: str = COMMAND_LINE
) -> tuple[list[Typed], list[Problem]]:
    """Everything that parses, and a problem for everything that does not or that only ``-m`` allows."""
    typed, problems = [], list(_spaced(texts, origin))
    for text in texts if not problems else _without_spaced(texts):
        try:
            item = replace(parse_override(text, composer), origin=origin)
        except (HydraException, ValueError) as error:
            problems.append(_unreadable(text, origin, error))
            continue
        problem = _sweep_problem(item, composer, multirun)
        problems += [problem] if problem else []
        typed += [] if problem else [item]
    return typed, problems


def _spaced_at(texts: Sequence[str]) -> list[int]:
    """Where ``key = value`` begins, which a shell hands over as three words."""
    return [at for at, text in enumerate(texts) if at + 2 < len(texts) and texts[at + 1] == "=" and "=" not in text]


def _spaced(texts: Sequence[str], origin: str) -> Iterator[Problem]:
    for at in _spaced_at(texts):
        key, _, value = texts[at : at + 3]
        words = f"{key} = {value}"
        yield Problem(words, origin, "has spaces around the =", f"write {key}={value}")


def _without_spaced(texts: Sequence[str]) -> list[str]:
    """The texts, with what was meant in place of what has spaces in it, so that the rest can still be checked."""
    starts = _spaced_at(texts)
    joined = {at: "".join(texts[at : at + 3]) for at in starts}
    gone = {at + step for at in starts for step in (1, 2)}
    return [joined.get(at, text) for at, text in enumerate(texts) if at not in gone]


def _unreadable(text: str, origin: str, error: Exception) -> Problem:
    """``path`` is the key, as far as one can tell; the nearest key may be found later."""
    shown = text if text.strip() else f"'{text}'"
    key = text.partition("=")[0].strip("+~ ")
    return Problem(shown, origin, *_diagnosis(text, error), path=key)


def _diagnosis(text: str, error: Exception) -> tuple[str, str]:
    """What is wrong with an override that Hydra's grammar does not accept, and what to write."""
    strange = next((letter for letter in text if ord(letter) > 127), None)
    if strange:
        named = unicodedata.name(strange, "a letter without a name")
        return f"has {named} ({ascii(strange)[1:-1]}), which no key has and values have only in quotes", ""
    if "=" not in text:
        example = f"write {text}=<value>" if re.fullmatch(r"[\w.]+", text) else "write key=value without spaces"
        return "expected key=value", example
    if text.startswith("="):
        return "nothing stands before the =", "write key=value without spaces"
    value = text.partition("=")[2]
    for opening, closing in ("[]", "{}"):
        if value.count(opening) != value.count(closing):
            missing = closing if value.count(opening) > value.count(closing) else opening
            return f"lacks a {missing}", "a value with spaces needs quotes around it: 'key={a: 1}'"
    if re.search(r"\s=|=\s", text):
        return "has spaces around the =", "write key=value without spaces"
    if value.startswith("(") and value.endswith(")"):
        return "cannot be read as key=value", f"a list is [{value[1:-1]}]"
    return f"cannot be read as key=value: {_reason(error)}", EXAMPLE


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0].partition(" expecting {")[0]


def _sweep_problem(item: Typed, composer: Composer, multirun: bool) -> Problem | None:
    if item.is_sweep and item.is_hydra:
        return item.problem(item.text, "Hydra's own settings cannot be swept")
    if item.is_sweep and not multirun:
        listed = f"a list is {item.key}=[{item.text.partition('=')[2]}]"
        takes_list = not item.is_group or item.key in NAMED_NODES
        return item.problem(item.text, "several values need -m", listed if takes_list else "")
    if item.is_sweep and not item.values:
        choices = f"choices: {', '.join(composer.choices(item.key))}" if item.is_group else ""
        return item.problem(item.text, "stands for no value at all", choices)
    return None


def sweep_problems(items: Sequence[Typed], sweeper: str) -> Iterator[Problem]:
    """Sweeps that the sweeper cannot take, and keys that are swept and set again, which gives the same job twice."""
    counts = Counter((item.key, item.package) for item in items)
    for item in items:
        if item.is_sweep and counts[item.key, item.package] > 1:
            yield item.problem(item.text, f"{item.key} is set twice, and a sweep sets it once", "leave one of them out")
        if item.is_interval and sweeper == "basic":
            words = "an interval is for sweepers that choose values themselves"
            yield item.problem(item.text, words, f"name the values: {item.key}=1,2,3 or range(1,4)")


def repeated(items: Sequence[Typed]) -> Iterator[str]:
    """A line for each key that is typed several times with different values, of which the last counts."""
    texts: dict[tuple[str, str], list[str]] = {}
    for item in items:
        if item.prefix != "~" and not item.is_sweep:
            texts.setdefault((item.key, item.package), []).append(item.text)
    for (key, _), (*others, last) in texts.items():
        different = list(dict.fromkeys(text for text in others if text != last))
        if different:
            verb = "does" if len(different) == 1 else "do"
            times = f"{len(others) + 1} times"
            yield f"{key} is typed {times}: {last} counts, and {', '.join(different)} {verb} not"


def apply(tree: DictConfig, item: Typed, value: Any) -> Problem | None:
    """Change the tree as Hydra will; a problem where OmegaConf refuses."""
    try:
        with open_dict(tree):
            parent, _, name = item.key.rpartition(".")
            container = OmegaConf.select(tree, parent) if parent else tree
            is_new = not isinstance(container, Container) or _lacks(container, name)
            if is_new and item.prefix in ("", "~") and not isinstance(value, dict):
                return item.problem(item.text, "another override takes it out first", "leave one of them out")
            if item.prefix == "~":
                del container[name]
            else:
                OmegaConf.update(tree, item.key, value, merge=True, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        if "Cannot merge" in str(error):
            there = _kind(OmegaConf.select(tree, item.key))
            return item.problem(item.text, f"expected {there}, for there is {there} in the files; got {_kind(value)}")
        return item.problem(item.text, f"cannot be set: {_reason(error)}")
    return None


def _kind(value: Any) -> str:
    if isinstance(value, DictConfig | dict):
        return "a mapping"
    return "a list" if isinstance(value, ListConfig | list) else "a value"


def _lacks(container: Container, name: str) -> bool:
    return name not in container.keys() if isinstance(container, DictConfig) else not name.isdigit()
