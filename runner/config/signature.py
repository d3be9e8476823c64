"""The signature of a target, read from its source where possible, so that checking a configuration imports no torch."""

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from runner.config.source import Definition, Module, locate, read_module, split_target
from runner.config.targets import TargetError, no_such_name, resolve_target

REQUIRED = inspect.Parameter.empty
SAFE_MODULES = frozenset(
    """annotated_types builtins collections collections.abc datetime decimal enum fractions numbers pathlib pydantic
    runner.types types typing typing_extensions""".split()
)
"""Modules that may be imported to evaluate an annotation: all quick, none of them imports torch."""
PLAIN_BASES = frozenset({"ABC", "Generic", "Protocol", "object"})


class Unreadable(Exception):
    """The source alone does not tell the signature."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a target; ``default`` is ``REQUIRED`` where it must be given."""

    name: str
    hint: Any = Any
    default: Any = REQUIRED


@dataclass(frozen=True)
class Signature:
    """What a target takes; ``takes_any`` where it has ``**kwargs``."""

    target: str
    parameters: dict[str, Parameter]
    takes_any: bool = False

    def without_first(self) -> "Signature":
        """That of a function of the first parameter, which others give."""
        return Signature(self.target, dict(list(self.parameters.items())[1:]), self.takes_any)


@lru_cache(maxsize=512)
def read_signature(target: str) -> Signature:
    """The signature of a class or function; raises ``TargetError`` where there is none."""
    try:
        return _read_source(target)
    except Unreadable:
        return _inspect(target)


def _read_source(target: str) -> Signature:
    place = split_target(target)
    module = read_module(place[0]) if place else None
    if not place or module is None or len(place[1]) != 1:
        raise Unreadable
    if module.lacks(place[1][0]):
        raise TargetError(no_such_name([*module.definitions, *module.imports], *place))
    found = locate(module, place[1][0])
    if found is None:
        raise Unreadable
    function, home, skip = _find_function(*found)
    return _from_arguments(target, function.args, home, skip) if function else Signature(target, {})


def _find_function(module: Module, node: Definition) -> tuple[ast.FunctionDef | None, Module, int]:
    if isinstance(node, ast.FunctionDef) and not node.decorator_list:
        return node, module, 0
    if isinstance(node, ast.ClassDef) and not node.decorator_list and not node.keywords:
        return _find_init(module, node)
    raise Unreadable


def _find_init(module: Module, node: ast.ClassDef) -> tuple[ast.FunctionDef | None, Module, int]:
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "__new__" in methods:
        raise Unreadable
    if "__init__" in methods:
        return methods["__init__"], module, 1
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        if name in PLAIN_BASES:
            continue
        found = locate(module, name) if isinstance(base, ast.Name) else None
        if found is None:
            raise Unreadable
        function, home, skip = _find_function(*found)
        if function:
            return function, home, skip
    return None, module, 0


def _from_arguments(target: str, arguments: ast.arguments, module: Module, skip: int) -> Signature:
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = [*zip(positional, [*padding, *arguments.defaults], strict=True)][skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {arg.arg: Parameter(arg.arg, _hint(arg.annotation, module), _default(value)) for arg, value in pairs}
    return Signature(target, parameters, takes_any=arguments.kwarg is not None)


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


class _Names(Mapping[str, Any]):
    """The names an annotation may use: those that come from safe modules, found when they are asked for."""

    def __init__(self, module: Module) -> None:
        self._module = module

    def __getitem__(self, name: str) -> Any:
        if name in self._module.imports:
            return _import_name(*self._module.imports[name])
        node = self._module.definitions.get(name)
        if isinstance(node, ast.expr):
            return _evaluate(node, self._module)
        if node is None and hasattr(importlib.import_module("builtins"), name):
            return getattr(importlib.import_module("builtins"), name)
        raise KeyError(name)

    def __iter__(self) -> Any:
        return iter(self._module.imports)

    def __len__(self) -> int:
        return len(self._module.imports)


def _import_name(origin: str, attribute: str | None) -> Any:
    if origin in SAFE_MODULES:
        module = importlib.import_module(origin)
        return getattr(module, attribute) if attribute else module
    other = read_module(origin) if attribute else None
    if other is None or attribute is None:
        raise KeyError(origin)
    return _Names(other)[attribute]


def _evaluate(node: ast.expr, module: Module) -> Any:
    return eval(compile(ast.Expression(node), module.name, "eval"), {"__builtins__": {}}, _Names(module))


def _hint(node: ast.expr | None, module: Module) -> Any:
    if node is None:
        return Any
    try:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        value = _evaluate(node, module)
    except Exception:  # whatever an annotation of the user's does, it only means that the value is not checked
        return Any
    return type(None) if value is None else value


def _inspect(target: str) -> Signature:
    """The signature of the imported object: for what is not plain Python source."""
    found = resolve_target(target)
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return Signature(target, {}, takes_any=True)
    hints = _hints_of(found)
    parameters, takes_any = {}, False
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            parameters[name] = Parameter(name, hints.get(name, Any), parameter.default)
    return Signature(target, parameters, takes_any)


def _hints_of(found: Any) -> dict[str, Any]:
    try:
        return get_type_hints(found.__init__ if inspect.isclass(found) else found, include_extras=True)
    except Exception:  # forward references to names that exist only for type checkers
        return {}


__all__ = ["REQUIRED", "Parameter", "Signature", "TargetError", "read_signature"]
