"""Hydra's own settings: which may be typed, and what a run needs of them."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from runner.config.composer import Composition, as_plain
from runner.config.overrides import Typed
from runner.config.report import COMMAND_LINE, Problem, did_you_mean, nearest, nearest_key
from runner.config.schema import TARGET
from runner.config.signature import read_signature
from runner.config.targets import TargetError
from runner.config.tree import ABSENT, LATER, Resolver, all_keys, lookup
from runner.config.trust import targets_of

FIXED = {
    "hydra.mode": ("the mode is not a setting", "use -m for a sweep"),
    "hydra.output_subdir": ("a run is resumed from the configuration in its folder .hydra", "leave this out"),
    "hydra.searchpath": ("is not supported", "--config-dir adds a folder of configs"),
}
"""Settings that are not for typing: what is wrong, and what to do instead."""


def hydra_problems(items: Sequence[Typed], composition: Composition, multirun: bool) -> list[Problem]:
    """What is wrong with the settings of Hydra that were typed."""
    typed = [item for item in items if item.is_hydra and not item.is_group]
    tree = copy.deepcopy(composition.tree)
    OmegaConf.update(tree, "hydra", copy.deepcopy(composition.hydra), force_add=True)
    OmegaConf.set_struct(tree, True)
    refused = [problem for item in typed if (problem := _apply(tree, item))]
    if refused or not typed:
        return refused
    origins = replace(composition.origins, typed={item.key: item.origin for item in typed})
    resolver = Resolver(origins, as_plain(tree["hydra"]))
    plain = resolver.plain(tree)["hydra"]
    keys = tuple(item.key for item in typed)
    unresolved = [problem for problem in resolver.problems if problem.key.startswith(keys)]
    return unresolved or [*_values(plain, typed), *_folders(plain, typed, multirun)]


def _apply(tree: DictConfig, item: Typed) -> Problem | None:
    """Let Hydra change the tree; a problem where it will refuse."""
    if item.key in FIXED:
        return item.problem(item.text, *FIXED[item.key])
    plain = {"hydra": as_plain(tree["hydra"])}
    if item.prefix in ("", "~") and lookup(plain, item.key) is ABSENT:
        keys = [key for key in all_keys(plain) if not key.endswith(TARGET)]
        groups = [key.replace(".", "/") for key in keys if key.count(".") == 1]
        guess = nearest(item.key, groups) if "/" in item.key else nearest_key(item.key, keys)
        return item.problem(item.key, "Hydra has no such setting", did_you_mean(guess))
    try:
        parsed = OverridesParser.create().parse_overrides([item.text])
        ConfigLoaderImpl._apply_overrides_to_config(parsed, tree)
    except Exception as error:  # Hydra stumbles over some values that it should refuse
        words = str(error.__cause__ or error).strip().split("\n")[0] or type(error).__name__
        return item.problem(item.text, f"Hydra cannot set this: {words}")
    return None


def _values(hydra: Mapping[str, Any], typed: Sequence[Typed]) -> Iterator[Problem]:
    """Targets that are not there, variables that are not set."""
    for item in typed:
        node = item.key.removesuffix(f".{TARGET}")
        for key, target in targets_of(lookup({"hydra": hydra}, node), node):
            try:
                read_signature(str(target))
            except TargetError as error:
                yield item.problem(f"{key}.{TARGET}", str(error))
    if not isinstance(hydra["verbose"], bool | str | list):
        yield Problem("hydra.verbose", COMMAND_LINE, "expected true, false, or the names of loggers")
    for name in ("launcher", "sweeper"):
        if not isinstance(hydra[name], Mapping):
            yield Problem(f"hydra.{name}", COMMAND_LINE, "expected a node with a _target_")
    for name in hydra["job"]["env_copy"]:
        if name not in os.environ:
            yield Problem("hydra.job.env_copy", COMMAND_LINE, f"the environment has no variable {name}")


def _folders(hydra: Mapping[str, Any], typed: Sequence[Typed], multirun: bool) -> Iterator[Problem]:
    """A run has a folder, and each job of a sweep its own."""
    written = {item.key: item for item in typed}
    for key in ("hydra.sweep.dir", "hydra.sweep.subdir") if multirun else ("hydra.run.dir",):
        item, value = written.get(key), lookup({"hydra": hydra}, key)
        if item is None or value is LATER:
            continue
        if not isinstance(value, str) or not value:
            yield item.problem(item.text, "expected a folder")
        elif key == "hydra.sweep.subdir":
            if "${" not in item.text:
                yield item.problem(item.text, "every job needs a folder of its own", f"{key}='${{hydra.job.num}}'")
        elif file := _file_in_the_way(Path(value)):
            yield item.problem(item.text, f"{file} is no folder")


def _file_in_the_way(folder: Path) -> Path | None:
    try:
        return next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    except OSError:  # too long a name
        return folder
