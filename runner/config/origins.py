"""Which file and line set each key of a composed configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.config.files import ConfigFile, check_file, read_root, walk_keys


@dataclass(frozen=True)
class Setting:
    """One place that sets a key."""

    file: ConfigFile
    line: int

    def __str__(self) -> str:
        return f"{self.file.label}:{self.line}"


@dataclass
class Origins:
    """The settings of each key in merge order, and where the keys were typed that are set on top of them."""

    settings: dict[str, list[Setting]] = field(default_factory=dict)
    typed: dict[str, str] = field(default_factory=dict)

    def of(self, key: str) -> str:
        """``file:line`` of the last setting of the key or of its nearest parent, or ``command line``."""
        inside = [origin for typed, origin in self.typed.items() if typed.startswith(f"{key}.")]
        if inside:
            return inside[-1]
        parts = key.split(".")
        for depth in range(len(parts), 0, -1):
            name = ".".join(parts[:depth])
            if name in self.typed:
                return self.typed[name]
            if name in self.settings:
                return str(self.settings[name][-1])
        return "conf/config.yaml"


def read_origins(files: Sequence[ConfigFile]) -> Origins:
    """The origins of the keys that these files set, the later file last."""
    origins = Origins()
    for file in files:
        if file.package:
            origins.settings.setdefault(file.package, []).append(Setting(file, 1))
        for key, line in walk_keys(read_root(file.path)):
            full = f"{file.package}.{key}" if file.package else key
            origins.settings.setdefault(full, []).append(Setting(file, line))
    return origins


def read_stored_origins(path: Path) -> Origins:
    """The origins of a configuration that is stored as one file; raises ``Rejected`` for one that cannot be read."""
    file = ConfigFile(path, str(path), "", "")
    check_file(file)
    return read_origins([file])
