"""What was typed, parsed with Hydra's own grammar and sorted into groups, values and Hydra's settings."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner.config.composer import Composer
from runner.config.report import COMMAND_LINE, Problem
from runner.config.tree import all_keys

MOST_VALUES = 200
"""Of a longer sweep over one key, only this many values are checked in advance."""


@dataclass(frozen=True)
class Typed:
    """One override; ``prefix`` is what stands before the key: nothing, ``+``, ``++`` or ``~``.

    ``values`` holds every value of a sweep, otherwise the one value. ``text`` is what Hydra will be given.
    """

    text: str
    key: str
    prefix: str
    values: tuple[Any, ...]
    is_group: bool
    is_sweep: bool
    package: str = ""

    @property
    def is_hydra(self) -> bool:
        return self.key.startswith(("hydra.", "hydra/"))

    def rewritten(self, text: str, prefix: str) -> "Typed":
        return replace(self, text=text, prefix=prefix)

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
    prefix = override.get_key_element().removesuffix(f"@{override.package}").removesuffix(override.key_or_group)
    is_dict = isinstance(override.value(), dict)
    is_group = override.package is not None or (composer.is_group(override.key_or_group) and not is_dict)
    values = tuple(_values(override, composer))
    sweep = override.is_sweep_override()
    return Typed(text, override.key_or_group, prefix, values, is_group, sweep, override.package or "")


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


def parse_overrides(texts: Sequence[str], composer: Composer, multirun: bool) -> tuple[list[Typed], list[Problem]]:
    """Everything that parses, and a problem for everything that does not or that only ``-m`` allows."""
    typed, problems = [], []
    for text in texts:
        try:
            item = parse_override(text, composer)
        except HydraException as error:
            problems.append(
                Problem(text, COMMAND_LINE, f"cannot be read as key=value: {_reason(error)}", _example(text))
            )
            continue
        problem = _sweep_problem(item, multirun)
        problems += [problem] if problem else []
        typed += [] if problem else [item]
    return typed, problems


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _example(text: str) -> str:
    if re.fullmatch(r"[\w.]+", text):
        return f"write {text}=<value>"
    return "quote values with spaces or special characters: key='\"a value\"'"


def _sweep_problem(item: Typed, multirun: bool) -> Problem | None:
    if item.is_sweep and item.is_hydra:
        return Problem(item.text, COMMAND_LINE, "Hydra's own settings cannot be swept")
    if item.is_sweep and not multirun:
        listed = item.text.partition("=")[2]
        return Problem(item.text, COMMAND_LINE, "several values need -m", f"a list is {item.key}=[{listed}]")
    return None


def apply(tree: DictConfig, item: Typed, value: Any) -> Problem | None:
    """Change the tree as Hydra will; a problem where OmegaConf refuses."""
    try:
        with open_dict(tree):
            if item.prefix == "~":
                parent, _, name = item.key.rpartition(".")
                container = OmegaConf.select(tree, parent) if parent else tree
                del container[name]
            else:
                OmegaConf.update(tree, item.key, value, merge=True, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError, KeyError) as error:
        return Problem(item.text, COMMAND_LINE, f"cannot be set: {_reason(error)}")
    return None
