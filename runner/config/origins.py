"""Which file and line set each key of a composed configuration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

from runner.config.report import COMMAND_LINE


@dataclass(frozen=True)
class ConfigFile:
    """A file of the composition: where it is, what a person calls it, and the key its content is put under."""

    path: Path
    label: str
    package: str
    config_path: str


@dataclass(frozen=True)
class Setting:
    """One place that sets a key."""

    file: ConfigFile
    line: int

    def __str__(self) -> str:
        return f"{self.file.label}:{self.line}"


@dataclass
class Origins:
    """The settings of each key in merge order, and the keys the command line sets."""

    settings: dict[str, list[Setting]] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)

    def of(self, key: str) -> str:
        """``file:line`` of the last setting of the key or of its nearest parent, or ``command line``."""
        parts = key.split(".")
        for depth in range(len(parts), 0, -1):
            name = ".".join(parts[:depth])
            if name in self.typed:
                return COMMAND_LINE
            if name in self.settings:
                return str(self.settings[name][-1])
        return "conf/config.yaml"


def read_origins(files: Sequence[ConfigFile]) -> Origins:
    """The origins of the keys that these files set, the later file last."""
    origins = Origins()
    for file in files:
        for key, line in _keys_of(file.path):
            full = f"{file.package}.{key}" if file.package else key
            origins.settings.setdefault(full, []).append(Setting(file, line))
    return origins


def read_stored_origins(path: Path) -> Origins:
    """The origins of a configuration that is stored as one file."""
    return read_origins([ConfigFile(path, str(path), "", "")])


@lru_cache(maxsize=256)
def _keys_of(path: Path) -> tuple[tuple[str, int], ...]:
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return tuple(_walk(node, ""))


def _walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value in node.value:
        key = f"{prefix}{key_node.value}"
        if key != "defaults":
            yield key, key_node.start_mark.line + 1
            yield from _walk(value, f"{key}.")
