"""Hydra's composition, asked for before Hydra runs: groups, choices, and the tree that a set of choices gives."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf

from runner.config.origins import ConfigFile, Origins, read_origins
from runner.config.report import COMMAND_LINE, Problem, Rejected

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
        self._loader = ConfigLoaderImpl(search_path)

    def is_group(self, name: str) -> bool:
        return bool(self._loader.repository.group_exists(name))

    def groups(self) -> list[str]:
        """All groups at the top of the search path, and those of Hydra that people choose."""
        return [*(g for g in self._options("", ObjectType.GROUP) if g != "hydra"), "hydra/launcher", "hydra/sweeper"]

    def choices(self, group: str) -> list[str]:
        """The choices of a group, those in its subfolders by their path."""
        nested = [f"{sub}/{choice}" for sub in self._options(group, ObjectType.GROUP)
                  for choice in self._options(f"{group}/{sub}")]  # fmt: skip
        return [*self._options(group), *nested]

    def _options(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        return list(self._loader.repository.get_group_options(group, kind))

    def compose(self, group_overrides: list[str]) -> Composition:
        """The tree that these choices give; raises whatever Hydra raises."""
        # The steps of load_configuration without its second half, which stops at the first bad value.
        # A fresh repository each time: merging shares nodes with what the repository has cached.
        parsed, repository = self._loader._parse_overrides_and_create_caching_repo(self.config_name, group_overrides)
        defaults = create_defaults_list(repository, self.config_name, parsed, prepend_hydra=True, skip_missing=False)
        tree = self._loader._compose_config_from_defaults_list(defaults.defaults, repository)
        hydra = tree.pop("hydra")
        found = [self._file_of(default, repository.get_sources()) for default in defaults.defaults]
        files = [file for file in found if file is not None]
        choices = {str(key): value for key, value in defaults.overrides.known_choices.items()}
        return Composition(tree, hydra, choices, files, read_origins(files))

    def _file_of(self, default: ResultDefault, sources: list[ConfigSource]) -> ConfigFile | None:
        path = default.config_path or ""
        source = next((source for source in sources if source.is_config(path)), None)
        if source is None or source.scheme() != "file":
            return None
        file = Path(source.path) / f"{path.removesuffix('.yaml')}.yaml"
        return ConfigFile(file, self._label(file), default.package or "", path)

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
