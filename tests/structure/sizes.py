"""Measures functions, files and constructors. ``python -m tests.structure.sizes`` prints the numbers."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from tests.structure.sources import ROOT, Source, read_sources

LIMITS = {"function median": 8, "function p90": 25, "function max": 60, "file p90": 250, "file max": 400}
"""In lines."""

MAX_ARGUMENTS = 10
"""Of a constructor, besides ``self``."""

ANY_NUMBER_OF_ARGUMENTS = {"Trainer", "Approximation"}
"""Classes whose constructors are fixed by the interfaces they reproduce."""


@dataclass(frozen=True)
class Measured:
    """A size in lines (or in arguments) and where it was found."""

    size: int
    where: str


def function_sizes(sources: list[Source]) -> list[Measured]:
    """Lines from ``def`` to the last line, docstring included; protocol stubs (``...``) do not count."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_stub(node):
                found.append(Measured(node.end_lineno - node.lineno + 1, f"{source.path}:{node.lineno} {node.name}"))
    return found


def _is_stub(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    last = node.body[-1]
    is_ellipsis = isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant) and last.value.value is ...
    return is_ellipsis and len(node.body) <= 2


def file_sizes(sources: list[Source]) -> list[Measured]:
    """Lines of each file that is not empty."""
    return [Measured(len(source.text.splitlines()), source.path) for source in sources if source.text.strip()]


def constructor_sizes(sources: list[Source]) -> list[Measured]:
    """Arguments of each ``__init__`` besides ``self``; fields of dataclasses do not count."""
    found = []
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and node.name not in ANY_NUMBER_OF_ARGUMENTS:
                found += [
                    Measured(_argument_count(init), f"{source.path}:{init.lineno} {node.name}") for init in _inits(node)
                ]
    return found


def _inits(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]


def _argument_count(node: ast.FunctionDef) -> int:
    arguments = node.args
    named = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - 1
    return named + (arguments.vararg is not None) + (arguments.kwarg is not None)


def numbers(sources: list[Source]) -> dict[str, int]:
    """The five figures that ``LIMITS`` bounds."""
    functions = [measured.size for measured in function_sizes(sources)]
    files = [measured.size for measured in file_sizes(sources)]
    return {
        "function median": _quantile(functions, 0.5),
        "function p90": _quantile(functions, 0.9),
        "function max": max(functions, default=0),
        "file p90": _quantile(files, 0.9),
        "file max": max(files, default=0),
    }


def _quantile(sizes: Sequence[int], fraction: float) -> int:
    """The smallest size that at least this fraction of the sizes does not exceed."""
    return sorted(sizes)[ceil(fraction * len(sizes)) - 1] if sizes else 0


def size_problems(sources: list[Source]) -> list[str]:
    found = numbers(sources)
    too_big = {name: found[name] for name in LIMITS if found[name] > LIMITS[name]}
    problems = [f"{name} is {size} lines, at most {LIMITS[name]} are allowed" for name, size in too_big.items()]
    if problems:
        problems += [
            f"{m.where}: {m.size} lines" for m in _longest(function_sizes(sources)) + _longest(file_sizes(sources))
        ]
    for constructor in constructor_sizes(sources):
        if constructor.size > MAX_ARGUMENTS:
            problems.append(f"{constructor.where}: {constructor.size} arguments, at most {MAX_ARGUMENTS} are allowed")
    return problems


def _longest(measured: list[Measured], count: int = 5) -> list[Measured]:
    return sorted(measured, key=lambda m: -m.size)[:count]


def summary(sources: list[Source]) -> str:
    """One line with all numbers."""
    counts = f"{len(function_sizes(sources))} functions, {len(file_sizes(sources))} files"
    largest = max((constructor.size for constructor in constructor_sizes(sources)), default=0)
    figures = ", ".join(f"{name} {size}" for name, size in numbers(sources).items())
    return f"{counts}: {figures} lines; constructors at most {largest} arguments"


if __name__ == "__main__":
    own = read_sources(ROOT)
    print(summary(own))
    for m in _longest(function_sizes(own), 10) + _longest(file_sizes(own), 10):
        print(f"{m.size:5} {m.where}")
