"""From a composed tree to checked plain values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from runner.config.modules import expand, module_problems
from runner.config.origins import Origins
from runner.config.relations import relation_problems
from runner.config.report import Problem
from runner.config.schema import Schema
from runner.config.source import find_spec
from runner.config.tree import Resolver
from runner.config.unplayed import unplayed_problems


@dataclass(frozen=True)
class Resolved:
    """Plain values, a problem for each interpolation that leads nowhere, and the keys that only repeat another key."""

    values: dict[str, Any]
    problems: list[Problem]
    links: dict[str, str]


def resolve(tree: DictConfig, origins: Origins, hydra: Mapping[str, Any] | None = None) -> Resolved:
    """Complete the modules and follow every interpolation; ``hydra``: what ``${hydra:...}`` may name, if known."""
    resolver = Resolver(origins, hydra)
    return Resolved(resolver.plain(expand(tree)), resolver.problems, resolver.links)


def check_values(resolved: Resolved, origins: Origins, groups: list[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The values coerced to what the signatures ask for, and everything that is wrong."""
    schema = Schema(origins, groups)
    config = schema.check(resolved.values)
    wrong = {problem.path for problem in schema.problems}
    # What is wrong with a value is said where it is set, and not where it is repeated.
    found = [*module_problems(resolved.values, origins), *resolved.problems, *schema.problems]
    first = [problem for problem in found if not _repeats(problem, resolved, wrong)]
    together = [*relation_problems(config, origins), *unplayed_problems(config, origins)] if not first else ()
    return config, [*first, *together, *_untrustable(config.get("trust"), origins)]


def _repeats(problem: Problem, resolved: Resolved, wrong: set[str]) -> bool:
    """Whether the value is another's, which is wrong itself or is in a node that is."""
    parts = resolved.links.get(problem.path or problem.key, "").split(".")
    return any(".".join(parts[:depth]) in wrong for depth in range(1, len(parts) + 1))


def validate(
    tree: DictConfig, origins: Origins, groups: list[str], hydra: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """Both steps: the values of a tree, and everything that is wrong with it."""
    return check_values(resolve(tree, origins, hydra), origins, groups)


def _untrustable(trust: Any, origins: Origins) -> Iterator[Problem]:
    for name in trust if isinstance(trust, list) else ():
        if isinstance(name, str) and not (name.replace(".", "_").isidentifier() and find_spec(name)):
            yield Problem(f"trust = {name}", origins.of("trust"), "there is no such package")
