"""What is valid, found out without our own checker: Hydra composes, ``inspect`` reads the signatures."""

import inspect
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf

from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.report import Rejected
from runner.config.root import root

TARGET = "_target_"
INCOMPLETE = {
    "env=gym": "env.id=CartPole-v1",
    "scheduler=piecewise": "scheduler.points=[[0,1e-3],[9,1e-4]]",
    "learning=value_estimator": "learning.value_estimator.estimator={_target_: tests.toys.RewardToGo}",
    "collector=sync": "env.num_envs=2",
    "collector=async": "env.num_envs=2",
}
"""Choices that leave something open, and what fills it in."""


@dataclass(frozen=True)
class Leaf:
    """A setting: its key, its value in the files, and the hint of the parameter it belongs to."""

    key: str
    value: Any
    hint: Any


def walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value, inner nodes included."""
    for name, value in tree.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from walk(value, f"{prefix}{name}.")


def hints_of(target: str | None) -> dict[str, Any]:
    """The parameters of a target with their hints; those of the root for ``None``."""
    found = root if target is None else get_object(target)
    hints = get_type_hints(found.__init__ if inspect.isclass(found) else found, include_extras=True)
    return {name: hints.get(name, Any) for name in inspect.signature(found).parameters}


class Context:
    """Some choices of groups, and everything that may be set once they are made."""

    def __init__(self, argv: tuple[str, ...], tree: dict[str, Any]) -> None:
        self.argv, self.tree = argv, tree
        self.values = dict(walk(tree))

    @cached_property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """The hints of the parameters of each node by the key of the node."""
        found = {key: hints_of(value[TARGET]) for key, value in self.values.items()
                 if isinstance(value, Mapping) and TARGET in value}  # fmt: skip
        return {"": hints_of(None), **found}

    @cached_property
    def leaves(self) -> list[Leaf]:
        """The settings that have a parameter of their own."""
        keys = [(key.rpartition("."), key, value) for key, value in self.values.items()]
        return [
            Leaf(key, value, self.nodes[parent][name])
            for (parent, _, name), key, value in keys
            if name in self.nodes.get(parent, {})
        ]

    @cached_property
    def injected(self) -> list[str]:
        """Required parameters that no file sets: the builder fills them in."""
        found = []
        for key in filter(None, self.nodes):
            parameters = inspect.signature(get_object(self.values[f"{key}.{TARGET}"])).parameters.values()
            required = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
            found += [f"{key}.{name}" for name in required if f"{key}.{name}" not in self.values]
        return found


class Space:
    """The groups and choices on disk, and what each choice makes it possible to set.

    ``few`` bounds how many choices are looked into, for each takes a tenth of a second.
    """

    def __init__(self, conf: Path, few: int | None = None, seed: int = 0) -> None:
        self.conf = conf
        self.groups: dict[str, list[str]] = {}
        for file in sorted(conf.glob("*/**/*.yaml")):
            group, *rest = file.relative_to(conf).with_suffix("").parts
            self.groups.setdefault(group, []).append("/".join(rest))
        self.plain = self._context(())
        self._choices = ["", *(f"{group}={choice}" for group, choices in self.groups.items() for choice in choices)]
        if few is not None:
            self._choices = random.Random(seed).sample(self._choices, few)

    def context(self, rng: random.Random) -> Context:
        """The default configuration with one other choice."""
        while not self.stands_alone(choice := rng.choice(self._choices)):
            pass
        return self.choose(*choice.split("=")) if choice else self.plain

    @cache  # noqa: B019
    def stands_alone(self, text: str) -> bool:
        """Whether this choice needs no other one beside it: a mistake is to be the only one."""
        try:
            check(parse_arguments([word for word in (text, INCOMPLETE.get(text)) if word]))
        except Rejected:
            return False
        return True

    @cache  # noqa: B019 - there is one space in a process
    def choose(self, group: str, choice: str) -> Context:
        """The configuration with this choice, complete."""
        text = f"{group}={choice}"
        return self._context((text, *([INCOMPLETE[text]] if text in INCOMPLETE else [])))

    def _context(self, argv: tuple[str, ...]) -> Context:
        tree = self.compose(*argv)
        assert tree is not None, argv
        return Context(argv, tree)

    def compose(self, *overrides: str) -> dict[str, Any] | None:
        """The tree that Hydra composes, or ``None`` where Hydra refuses."""
        try:
            with initialize_config_dir(str(self.conf), version_base="1.3"):
                plain = OmegaConf.to_container(compose("config", list(overrides)), resolve=False)
        except (HydraException, ValueError, AssertionError, AttributeError, TypeError):
            return None
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    @cached_property
    def hydra(self) -> dict[str, Any]:
        """Every setting of Hydra by its dotted key."""
        with initialize_config_dir(str(self.conf), version_base="1.3"):
            found = compose("config", [], return_hydra_config=True)
        return dict(walk({"hydra": OmegaConf.to_container(found.hydra, resolve=False)}))
