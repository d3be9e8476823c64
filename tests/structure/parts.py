"""That hooks and configuration files belong together: what a YAML names exists, and every hook has a YAML."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.structure.sources import OWN, read_sources

HOOK_BASES = {"TrainerHookBase", "StatelessHook", "Hook"}


def targets(root: Path) -> list[tuple[str, str]]:
    """Each YAML of ``conf/`` with each ``_target_`` in it."""
    found = []
    for path in sorted(root.glob("conf/**/*.yaml")):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        found += [(str(path.relative_to(root)), target) for target in _targets_in(tree)]
    return found


def _targets_in(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for child in node.values():
            yield from _targets_in(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets_in(child)


def target_problems(root: Path) -> list[str]:
    """Targets whose file, or whose class or function in it, does not exist."""
    return [f"{path}: no {target}" for path, target in targets(root) if not _exists(root, target)]


def _exists(root: Path, target: str) -> bool:
    module, _, name = target.rpartition(".")
    if target.split(".")[0] not in OWN:
        return importlib.util.find_spec(target.split(".")[0]) is not None
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return name in _top_names(ast.parse(path.read_text(encoding="utf-8")))
    return False


def _top_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def hook_problems(root: Path) -> list[str]:
    """Files of ``hooks/`` that do not hold exactly one hook, or whose hook no YAML of ``conf/`` names."""
    named = {target for _, target in targets(root)}
    problems = []
    for source in read_sources(root):
        if not source.name.startswith("hooks."):
            continue
        hooks = [node.name for node in source.tree.body if isinstance(node, ast.ClassDef) and _is_hook(node)]
        if len(hooks) != 1:
            problems.append(f"{source.path}: {len(hooks)} subclasses of TrainerHookBase, one is expected")
        problems += [f"{source.path}: no YAML names {hook}" for hook in hooks if f"{source.name}.{hook}" not in named]
    return problems


def _is_hook(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split(".")[-1] in HOOK_BASES for base in node.bases)
