"""Configuration files, looked at before Hydra composes them: what is wrong is said with its file and line."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from yaml.constructor import SafeConstructor
from yaml.reader import ReaderError

from runner.config.report import Problem, Rejected


@dataclass(frozen=True)
class ConfigFile:
    """A file of the composition: where it is, what a person calls it, and the key its content is put under."""

    path: Path
    label: str
    package: str
    config_path: str


class Unreadable(Exception):
    """A file is no mapping in YAML; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def read_root(path: Path) -> yaml.MappingNode | None:
    """The top of a file, ``None`` where it is empty; raises ``Unreadable``."""
    try:
        stat = path.stat()
    except OSError as error:
        raise Unreadable(1, f"cannot be read: {error.strerror}") from None
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, *version: int) -> yaml.MappingNode | None:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if root is None or root.tag == "tag:yaml.org,2002:null":
            return None
        _check_node(root, set())
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, f"is not UTF-8: byte {error.object[error.start]:#x}") from None
    except ReaderError as error:
        line = path.read_text(encoding="utf-8").count("\n", 0, error.position) + 1
        raise Unreadable(line, f"has the character {chr(error.character)!r}, which YAML does not allow") from None
    except yaml.MarkedYAMLError as error:
        raise Unreadable(_line(error.problem_mark), _reason(error)) from None
    except RecursionError:
        raise Unreadable(1, "is nested too deep") from None
    except OSError as error:
        raise Unreadable(1, f"cannot be read: {error.strerror}") from None
    if not isinstance(root, yaml.MappingNode):
        raise Unreadable(_line(root.start_mark), f"expected settings, each as name: value, not {_kind(root)}")
    return root


def _line(mark: yaml.Mark | None) -> int:
    return mark.line + 1 if mark else 1


def _reason(error: yaml.MarkedYAMLError) -> str:
    words = str(error.problem)
    if r"'\t'" in words:
        return "has a tab: YAML is indented with spaces"
    return f"is no valid YAML: {words}{f', {error.context}' if error.context else ''}"


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"the value {node.value}"


def _check_node(node: yaml.Node, seen: set[int]) -> None:
    """Find keys that are there twice or are no names, and tags that stand for objects."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.tag not in SafeConstructor.yaml_constructors:
        raise Unreadable(_line(node.start_mark), f"has the tag {node.tag}: only plain values are read")
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _check_node(part, seen)


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = _line(key.start_mark)
        if not isinstance(key, yaml.ScalarNode):
            raise Unreadable(line, "a key must be a name, not a list or a mapping")
        if key.value in lines:
            raise Unreadable(line, f"{key.value} is here twice, and first in line {lines[key.value]}")
        lines[key.value] = line


def check_file(file: ConfigFile) -> yaml.MappingNode | None:
    """The top of a file; raises ``Rejected`` where it cannot be read."""
    try:
        return read_root(file.path)
    except Unreadable as error:
        raise Rejected([Problem(file.label, f"{file.label}:{error.line}", str(error))]) from None


def walk_keys(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every dotted key below a node with its line, the defaults list left out."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value in node.value:
        key = f"{prefix}{key_node.value}"
        if key != "defaults":
            yield key, _line(key_node.start_mark)
            yield from walk_keys(value, f"{key}.")
