"""Hydra's composition, asked for before Hydra runs: groups, choices, and the tree that a set of choices gives."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from runner.config.defaults import defaults_problems
from runner.config.files import ConfigFile, Unreadable, check_file, read_root, walk_keys
from runner.config.origins import Origins, read_origins
from runner.config.report import COMMAND_LINE, Problem, Rejected, choices_hint

HYDRA_VERSION_BASE = "1.3"


@dataclass
class Composition:
    """What the choices of groups alone give, before any value is overridden."""

    tree: DictConfig
    hydra: DictConfig
    choices: dict[str, Any]
    files: list[ConfigFile]
    origins: Origins

    def tuned_files(self) -> list[ConfigFile]:
        return [file for file in self.files if file.config_path.startswith("tuned/")]


class _Watched(CachingConfigRepository):
    """Has each file looked at before Hydra reads it, and remembers which were read."""

    def __init__(self, composer: "Composer") -> None:
        super().__init__(composer.loader.repository)
        self._composer = composer
        self.read: list[str] = []

    def load_config(self, config_path: str) -> ConfigResult | None:
        if self.read[-1:] != [config_path]:
            self.read.append(config_path)
        if f"config_path={config_path}" not in self.cache:
            self._composer.check_file(config_path)
        return super().load_config(config_path)


class Composer:
    """Composes configurations from our ``conf`` folder and a folder of the user's."""

    def __init__(self, conf: Path, config_dir: Path | None = None, config_name: str = "config") -> None:
        version.setbase(HYDRA_VERSION_BASE)
        self.conf, self.config_name = conf, config_name
        if config_dir is not None and not config_dir.is_dir():
            raise Rejected([Problem("--config-dir", COMMAND_LINE, f"there is no folder {config_dir}")])
        search_path = create_config_search_path(f"file://{conf}")
        if config_dir is not None:
            folder = f"file://{config_dir.absolute()}"
            search_path.prepend("command-line", folder, anchor=SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(search_path)
        names = [name for name in self._options("") if not name.startswith("_") and "/" not in name]
        if config_name.removesuffix(".yaml") not in names:
            words = f"there is no configuration {config_name}"
            raise Rejected([Problem("--config-name", COMMAND_LINE, words, choices_hint(config_name, names))])

    def is_group(self, name: str) -> bool:
        return bool(self.loader.repository.group_exists(name))

    def groups(self) -> list[str]:
        """All groups at the top of the search path, and those of Hydra that people choose."""
        return [*(g for g in self._options("", ObjectType.GROUP) if g != "hydra"), "hydra/launcher", "hydra/sweeper"]

    def choices(self, group: str) -> list[str]:
        """The choices of a group, those in its subfolders by their path."""
        nested = [f"{sub}/{choice}" for sub in self._options(group, ObjectType.GROUP)
                  for choice in self._options(f"{group}/{sub}")]  # fmt: skip
        return [*self._options(group), *nested]

    def keys_of(self, config_path: str) -> list[str]:
        """The keys that a file of ours or of the user's sets by itself; none where it cannot be read."""
        file = self._file_of(config_path)
        try:
            return [key for key, _ in walk_keys(read_root(file.path))] if file else []
        except Unreadable:
            return []

    def _options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        return list(self.loader.repository.get_group_options(group, kind))

    def compose(self, group_overrides: list[str]) -> Composition:
        """The tree that these choices give; raises ``Rejected`` where they give none."""
        # A fresh repository each time: merging shares nodes with what the repository has cached.
        repository = _Watched(self)
        try:
            return self._compose(group_overrides, repository)
        except Rejected:
            raise
        except Exception as error:  # Hydra, OmegaConf and their parsers raise nearly everything
            raise Rejected([self._explain(error, group_overrides, repository.read)]) from None

    def _compose(self, group_overrides: list[str], repository: _Watched) -> Composition:
        # The steps of load_configuration without its second half, which stops at the first bad value.
        parsed = OverridesParser.create().parse_overrides(group_overrides)
        self.loader._process_config_searchpath(self.config_name, parsed, repository)
        defaults = create_defaults_list(repository, self.config_name, parsed, prepend_hydra=True, skip_missing=False)
        tree = self.loader._compose_config_from_defaults_list(defaults.defaults, repository)
        hydra = tree.pop("hydra")
        found = [self._file_of(default.config_path or "", default) for default in defaults.defaults]
        files = [file for file in found if file is not None]
        choices = {str(key): value for key, value in defaults.overrides.known_choices.items()}
        return Composition(tree, hydra, choices, files, read_origins(files))

    def check_file(self, config_path: str) -> None:
        """Raises ``Rejected`` where a file of ours or of the user's cannot be read or its defaults list is wrong."""
        if file := self._file_of(config_path):
            problems = list(defaults_problems(check_file(file), file, self))
            if problems:
                raise Rejected(problems)

    def _explain(self, error: Exception, groups: list[str], read: list[str]) -> Problem:
        """One line about what Hydra could not compose, with the file it happened in where that is known."""
        causes = [text for text in (str(error.__cause__ or ""), str(error)) if text]
        words = " ".join(causes[0].split()) if causes else type(error).__name__
        if isinstance(error, RecursionError) and read:
            if read[-1] not in read[:-1]:
                return Problem("YAML", self._named(read[-1]), "a value leads back to itself, or is nested too deeply")
            start = len(read) - 2 - read[-2::-1].index(read[-1])
            chain = " -> ".join(map(self._named, read[start:]))
            return Problem("defaults", self._named(read[-1]), f"the lists lead back to where they began: {chain}")
        if named := re.match(r"In '([^']+)': (.*)", words):
            return Problem("defaults", self._named(named[1]), named[2].partition(" Config search path:")[0])
        if "interpolation" in words and read:
            return Problem("defaults", self._named(read[-1]), words.partition(", possible")[0])
        return Problem(" ".join(groups) or self._named(self.config_name), COMMAND_LINE, words)

    def _named(self, config_path: str) -> str:
        file = self._file_of(config_path)
        return file.label if file else config_path

    def _file_of(self, config_path: str, default: ResultDefault | None = None) -> ConfigFile | None:
        sources: list[ConfigSource] = self.loader.repository.get_sources()
        source = next((source for source in sources if source.is_config(config_path)), None)
        if source is None or source.scheme() != "file":
            return None
        file = Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml"
        return ConfigFile(file, self._label(file), default.package or "" if default else "", config_path)

    def _label(self, file: Path) -> str:
        if file.is_relative_to(self.conf):
            return str(file.relative_to(self.conf.parent))
        relative = os.path.relpath(file)
        return str(file) if relative.startswith("..") else relative


def as_plain(tree: DictConfig) -> dict[str, Any]:
    """The tree as dicts and lists, interpolations and ``???`` left as they are written."""
    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
