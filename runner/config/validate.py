"""From a composed tree to checked plain values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from runner.config.origins import Origins
from runner.config.report import Problem
from runner.config.schema import Schema
from runner.config.source import find_spec
from runner.config.tree import Resolver


@dataclass(frozen=True)
class Resolved:
    """Plain values, a problem for each interpolation that leads nowhere, and the keys that only repeat another key."""

    values: dict[str, Any]
    problems: list[Problem]
    links: dict[str, str]


def resolve(tree: DictConfig, origins: Origins) -> Resolved:
    """Follow every interpolation."""
    resolver = Resolver(origins)
    return Resolved(resolver.plain(tree), resolver.problems, resolver.links)


def check_values(resolved: Resolved, origins: Origins, groups: list[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The values coerced to what the signatures ask for, and everything that is wrong."""
    schema = Schema(origins, groups)
    config = schema.check(resolved.values)
    wrong = {problem.path for problem in schema.problems}
    # What is wrong with a value is said where it is set, and not where it is repeated.
    first = [problem for problem in schema.problems if resolved.links.get(problem.path) not in wrong]
    return config, [*resolved.problems, *first, *_untrustable(config.get("trust"), origins)]


def validate(tree: DictConfig, origins: Origins, groups: list[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Both steps: the values of a tree, and everything that is wrong with it."""
    return check_values(resolve(tree, origins), origins, groups)


def _untrustable(trust: Any, origins: Origins) -> Iterator[Problem]:
    for name in trust if isinstance(trust, list) else ():
        if not isinstance(name, str) or not name.replace(".", "_").isidentifier() or find_spec(name) is None:
            yield Problem(f"trust = {name}", origins.of("trust"), "there is no such package")
