"""Reads the program's source files and what they import, without importing them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = ("runner", "hooks", "run", "scripts", "tests", "conf")
"""The names that an import of the program's own code begins with."""


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, its path below the root and its parsed text."""

    name: str
    path: str
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name; ``is_late`` means inside a function."""

    name: str
    line: int
    is_late: bool

    @property
    def is_own(self) -> bool:
        return self.name.split(".")[0] in OWN


def read_sources(root: Path) -> list[Source]:
    """All of ``runner/``, ``hooks/``, ``run.py`` and ``scripts/`` below ``root``."""
    patterns = ("runner/**/*.py", "hooks/**/*.py", "run.py", "scripts/**/*.py")
    paths = sorted(path.relative_to(root) for pattern in patterns for path in root.glob(pattern))
    return [_read(root, path) for path in paths]


def write_sources(root: Path, files: dict[str, str]) -> list[Source]:
    """Write an example program, and read everything below ``root``."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return read_sources(root)


def _read(root: Path, path: Path) -> Source:
    text = (root / path).read_text(encoding="utf-8")
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(name, str(path), text, ast.parse(text, str(path)))


def imports_of(source: Source, modules: set[str]) -> list[Import]:
    """What a module imports, ``TYPE_CHECKING`` included; ``from a import b`` means ``a.b`` if that is a module."""
    found = []
    for node, is_late in _walk(source.tree, is_late=False):
        for name in _imported_names(node, source):
            base, _, last = name.rpartition(":")
            full = f"{base}.{last}" if base and f"{base}.{last}" in modules else base or last
            found.append(Import(full, node.lineno, is_late))
    return found


def _walk(node: ast.AST, is_late: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, is_late
        yield from _walk(child, is_late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def _imported_names(node: ast.AST, source: Source) -> list[str]:
    """Names as ``module`` or, from ``from module import x``, as ``module:x``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _absolute(node, source)
        return [f"{base}:{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "import_module",
        "importlib.import_module",
        "__import__",
    ):
        return [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return []


def _absolute(node: ast.ImportFrom, source: Source) -> str:
    if not node.level:
        return node.module or ""
    package = source.name.split(".")
    if not source.path.endswith("__init__.py"):
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])
