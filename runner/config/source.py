"""Python modules read as text: what they define and import, without running them."""

import ast
import importlib.machinery
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

PLAIN = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Import, ast.ImportFrom, ast.Expr, ast.Pass,
         ast.Assign, ast.AnnAssign)  # fmt: skip
Definition = ast.ClassDef | ast.FunctionDef | ast.expr


@dataclass(frozen=True)
class Module:
    """The top level of one source file.

    ``imports`` maps a name to ``(module, attribute)``, where no attribute means the module itself. ``is_plain`` where
    names are bound by nothing but definitions, assignments and imports.
    """

    name: str
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    is_plain: bool = True

    def lacks(self, name: str) -> bool:
        """Whether the module certainly does not have that name."""
        known = self.definitions.keys() | self.imports.keys()
        return self.is_plain and name not in known and not {"*", "__getattr__"} & known


def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module, without importing its parents (``importlib.util.find_spec`` would)."""
    spec: importlib.machinery.ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        path = spec.submodule_search_locations if spec else None
        if depth > 1 and path is None:
            return None
        spec = _ask_finders(".".join(parts[:depth]), path)
        if spec is None:
            return None
    return spec


def _ask_finders(name: str, path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            if hasattr(finder, "find_spec") and (spec := finder.find_spec(name, path)):
                return spec
        except KeyError:  # a folder without __init__.py in another such: Python wants the outer one imported
            return _namespace_spec(name, path or [])
    return None


def _namespace_spec(name: str, path: list[str]) -> importlib.machinery.ModuleSpec:
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    folders = [Path(entry, name.rpartition(".")[2]) for entry in path]
    spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
    return spec


def split_target(target: str) -> tuple[str, list[str]] | None:
    """The longest module in a dotted name, and the names within it."""
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    for depth in range(len(parts) - 1, 0, -1):
        if find_spec(".".join(parts[:depth])):
            return ".".join(parts[:depth]), parts[depth:]
    return None


def submodules(name: str) -> list[str]:
    """The names of the modules in a package."""
    spec = find_spec(name)
    return [found.name for found in pkgutil.iter_modules(spec.submodule_search_locations or [])] if spec else []


@lru_cache(maxsize=256)
def read_module(name: str) -> Module | None:
    """The module's source, or ``None`` where there is none or it cannot be parsed."""
    spec = find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return None
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    statements = list(_top_level(tree.body))
    module = Module(name, is_plain=all(isinstance(statement, PLAIN) for statement in statements))
    for statement in statements:
        _enter(module, statement, package)
    return module


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            yield from _top_level(statement.body)
            yield from _top_level(statement.orelse)
            for handler in getattr(statement, "handlers", ()):
                yield from _top_level(handler.body)
        else:
            yield statement


def _enter(module: Module, statement: ast.stmt, package: str) -> None:
    match statement:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            module.definitions[name] = statement
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            module.definitions[name] = value
        case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
            module.definitions[name] = value
        case ast.Import(names=names):
            for alias in names:
                first = alias.name.partition(".")[0]
                module.imports[alias.asname or first] = (alias.name if alias.asname else first, None)
        case ast.ImportFrom(names=names):
            origin = _absolute(statement, package)
            module.imports.update({alias.asname or alias.name: (origin, alias.name) for alias in names})


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    if not statement.level:
        return statement.module or ""
    parents = package.split(".")
    base = parents[: len(parents) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])


def locate(module: Module, name: str, depth: int = 0) -> tuple[Module, Definition] | None:
    """Where a name of a module is defined, through imports from other modules."""
    if name in module.definitions:
        return module, module.definitions[name]
    origin, attribute = module.imports.get(name, ("", None))
    other = read_module(origin) if attribute and depth < 8 else None
    return locate(other, attribute, depth + 1) if other and attribute else None
