"""Which names may stand where: algorithms, and the entries of the repository's top folder."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from tests.structure.sources import Source

# fmt: off
ALGORITHMS = {
    "dqn", "ddqn", "c51", "qrdqn", "iqn", "rainbow", "r2d2", "apex", "qmix", "vdn", "ppo", "mappo", "ippo",
    "appo", "ppg", "sac", "td3", "ddpg", "maddpg", "redq", "crossq", "a2c", "a3c", "trpo", "vpg", "vac",
    "impala", "sarsa", "iql", "cql", "awac", "awr", "gail", "airl", "dreamer",
}
WORDS_OF_OTHERS = {"reinforce"}
"""Algorithms whose names mean something else, too: what moves an ``Approximation`` down its loss."""
TOP_LEVEL = {
    "pyproject.toml", "conf", "runner", "hooks", "tests", "outputs", "scripts", "run.py", "README.md",
    "CHANGELOG.md", "LICENSE", "constraints.txt",
}
# fmt: on
GENERATED = ("build", "dist", "__pycache__", "*.egg-info")


def algorithm_problems(sources: list[Source], algorithms: set[str]) -> list[str]:
    """Names and strings of ``runner/`` (without ``losses/``), ``hooks/`` and ``run.py`` that name an algorithm.

    Docstrings and comments may. In ``runner.builders`` so may functions named after an algorithm, ``__all__`` and the
    imports of losses.
    """
    problems = []
    for source in sources:
        if source.name.startswith(("runner.losses", "scripts")):
            continue
        if names_algorithm(source.name, algorithms):
            problems.append(f"{source.path} is named after an algorithm")
        is_builder = source.name.startswith("runner.builders")
        problems += [
            f"{source.path}:{line}: {text!r} names an algorithm"
            for line, text in _named(source.tree, algorithms, is_builder)
        ]
    return problems


def names_algorithm(text: str, algorithms: set[str]) -> bool:
    """Whether a word of the text is an algorithm's name: ``make_dqn_loss``, ``DQNLoss``, ``algo=dqn``."""
    snake = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", text)
    snake = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", snake).lower()
    return any(word in algorithms for word in re.split(r"[^a-z0-9]+", snake))


def _named(node: ast.AST, algorithms: set[str], is_builder: bool) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        if _is_docstring(child) or (is_builder and _is_for_one_algorithm(child, algorithms)):
            continue
        line = getattr(child, "lineno", getattr(node, "lineno", 1))
        yield from ((line, text) for text in _texts(child) if names_algorithm(text, algorithms))
        yield from _named(child, algorithms, is_builder)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_one_algorithm(node: ast.AST, algorithms: set[str]) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith("runner.losses")
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    return isinstance(node, ast.FunctionDef) and names_algorithm(node.name, algorithms)


def _texts(node: ast.AST) -> list[str]:
    """The names and strings that a node itself holds, not those of its children."""
    fields = ("id", "attr", "name", "asname", "module", "arg", "value")
    return [value for field in fields if isinstance(value := getattr(node, field, None), str)]


def top_level_problems(root: Path) -> list[str]:
    """Entries of the top folder, hidden ones aside, that the design does not list."""
    names = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    unknown = [name for name in names if name not in TOP_LEVEL and not any(fnmatch(name, p) for p in GENERATED)]
    return [f"{name} does not belong at the top of the repository" for name in sorted(unknown)]
