"""Reading back the configuration in a run's folder, which nobody vouches for: it is data, and never code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.config.report import MOST_PROBLEMS, Problem, Rejected
from runner.config.tree import LINK, lookup
from runner.runs import MENDED

MOST_BYTES = 2**17
MOST_DEPTH = 32
MOST_EXPANDED = 2**20
"""Characters, once every interpolation is followed: one that repeats one that repeats one can fill any memory."""
LARGEST_INTEGER = 2**63


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ``Rejected`` for anything else, for aliases and for resolver calls."""
    try:
        content = _load(path)
        problems = [Problem(key, str(path), f"{value} is not read back from a run", "only ${other.key} is")
                    for key, value in _strings(content) if "${" in LINK.sub("", value)]  # fmt: skip
        if not problems and _Sizes(content).of("") > MOST_EXPANDED:
            raise ValueError(f"its interpolations make more than {MOST_EXPANDED} characters of it")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Rejected([Problem(str(path), "run folder", *_damage(error))]) from None
    if problems:
        raise Rejected(problems[:MOST_PROBLEMS])
    return content


def _damage(error: Exception) -> tuple[str, str]:
    """What is wrong with a file, and what to do; where it lies there is what matters of a mark in YAML."""
    if isinstance(error, FileNotFoundError):
        return "the file is gone", MENDED
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror}", ""
    words, mark = str(error), getattr(error, "problem_mark", None)
    if mark is not None:
        words = f"line {mark.line + 1}: {getattr(error, 'problem', words)}"
    return f"the file is damaged: {words}", MENDED


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe would keep us waiting
        raise FileNotFoundError
    with open(path, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    text = raw.decode()
    _check_events(text)
    content = yaml.load(text, yaml.SafeLoader)
    if not isinstance(content, dict):
        raise ValueError("it is not a mapping of names")
    _check_plain(content, "")
    return content


def _check_events(text: str) -> None:
    """Refuse what takes long, or much, merely to be read: a few aliases of aliases, or brackets within brackets."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has aliases")
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_DEPTH} levels")


def _check_plain(value: Any, key: str) -> None:
    """Refuse what YAML knows and JSON does not, and numbers and texts that cannot be written down again."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str) and (not key or type(name) not in (int, float, bool)):
                raise ValueError(f"{key or 'it'} has a key that is no name: {name!r:.40}")
            _check_plain(name, key)
            _check_plain(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{key}.{index}")
    elif isinstance(value, str):
        value.encode()
    elif not (value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST_INTEGER)):
        raise ValueError(f"{key} is no plain value: a {type(value).__name__}")


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


class _Sizes:
    """How long values are once their interpolations are followed; worked out without following them."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self._known: dict[str, int | None] = {}

    def of(self, key: str) -> int:
        if key not in self._known:
            self._known[key] = None
            self._known[key] = self._measure(lookup(self._tree, key), key)
        size = self._known[key]
        if size is None:
            raise ValueError(f"{key}: its interpolation leads back to itself")
        return size

    def _measure(self, value: Any, key: str) -> int:
        if isinstance(value, Mapping):
            return sum(len(str(name)) + 1 + self._measure(part, f"{key}.{name}") for name, part in value.items())
        if isinstance(value, list):
            return sum(1 + self._measure(part, f"{key}.{index}") for index, part in enumerate(value))
        if isinstance(value, str):
            return len(value) + sum(self.of(_absolute(link, key)) for link in LINK.findall(value))
        return 8


def _absolute(link: str, key: str) -> str:
    """The key that ``${link}`` means at ``key``: with a leading dot beside it, with two a level up, and so on."""
    name = link.lstrip(".")
    up = len(link) - len(name)
    return ".".join([*key.lstrip(".").split(".")[:-up], name]) if up else name
