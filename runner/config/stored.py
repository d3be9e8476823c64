"""Reading back the configuration in a run's folder, which nobody vouches for: it is data, and never code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf.grammar_parser import OmegaConfGrammarParser, parse

from runner.config.report import Problem, Rejected
from runner.config.schema import TARGET
from runner.config.targets import TargetError, is_allowed, is_nameable, resolve_target

MOST_BYTES = 2**20


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ``Rejected`` for anything else, for aliases and for resolver calls."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        text = raw.decode()
        # A few aliases of aliases are enough to fill any memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases")
        content = yaml.load(text, yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Rejected([Problem(str(path), "run folder", f"cannot be read: {' '.join(str(error).split())}")]) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise Rejected([Problem(str(path), "run folder", "is not a mapping of names")])
    problems = [Problem(key, str(path), f"{value} is not read back from a run", "only ${other.key} is")
                for key, value in _strings(content) if _calls_resolver(value)]  # fmt: skip
    if problems:
        raise Rejected(problems)
    return content


def _strings(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _strings(str(name), f"{key}.{name}".strip("."))
            yield from _strings(value, f"{key}.{name}".strip("."))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _strings(value, f"{key}.{index}")
    elif isinstance(tree, str):
        yield key, tree


def _calls_resolver(text: str) -> bool:
    if "${" not in text:
        return False
    try:
        return any(
            isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext) for node in _nodes(parse(text))
        )
    except Exception:  # what the grammar does not accept is refused as well
        return True


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in getattr(node, "children", None) or ():
        yield from _nodes(child)


def targets_of(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` of a tree with the key of its node."""
    if isinstance(tree, Mapping):
        if TARGET in tree:
            yield key, tree[TARGET]
        for name, value in tree.items():
            yield from targets_of(value, f"{key}.{name}".strip("."))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from targets_of(value, f"{key}.{index}")


def unnameable_problems(config: Mapping[str, Any], trust: list[str], typed: set[str], origin: str) -> Iterator[Problem]:
    """Targets and packages that a stored run may not name; judged by their names, nothing is imported.

    Args:
        typed: the keys of nodes (and ``env.id``) that this command line names itself; those are trusted.
    """
    for key, target in targets_of(config):
        if key not in typed and not (isinstance(target, str) and is_nameable(target, trust)):
            yield _refusal(key, str(target), trust, origin)
    package = _package_of_env(config)
    if package and "env.id" not in typed and package.partition(".")[0] not in trust:
        yield _refusal("env.id", package, trust, origin)


def packages_to_trust(config: Mapping[str, Any]) -> list[str]:
    """What resuming a run with this configuration has to be told to trust."""
    targets = [target for _, target in targets_of(config) if not is_nameable(target, ())]
    package = _package_of_env(config)
    return sorted({name.partition(".")[0] for name in (*targets, *([package] if package else []))})


def _package_of_env(config: Mapping[str, Any]) -> str | None:
    """The module that ``env.id=module:Id`` imports, unless it is gymnasium's."""
    env = config.get("env")
    env_id = env.get("id") if isinstance(env, Mapping) else None
    if not isinstance(env_id, str) or ":" not in env_id:
        return None
    package = env_id.partition(":")[0]
    return None if package.partition(".")[0] == "gymnasium" else package


def forbidden_problems(config: Mapping[str, Any], trust: list[str], typed: set[str], origin: str) -> Iterator[Problem]:
    """Targets that turn out to be something a stored run may not build; imports the modules they name."""
    for key, target in targets_of(config):
        if key in typed:
            continue
        try:
            allowed = is_allowed(resolve_target(target), trust)
        except TargetError:
            allowed = False
        if not allowed:
            yield _refusal(key, target, trust, origin)


def _refusal(key: str, target: str, trust: list[str], origin: str) -> Problem:
    package = target.partition(".")[0]
    hint = f"if that is your own package, add trust=[{','.join([*trust, package])}]"
    return Problem(key, origin, f"a resumed run may not name {target}", hint)
