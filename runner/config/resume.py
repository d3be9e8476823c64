"""Going on with a run: its stored configuration, and on top of it what is typed now."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.arguments import Arguments
from runner.config.composer import Composer, as_plain
from runner.config.continued import changes, has_checkpoint, misfits
from runner.config.folder import check_folder
from runner.config.groups import choose, usable_choices
from runner.config.keys import check_key
from runner.config.modules import MODULES, SELECTOR, expand
from runner.config.origins import read_stored_origins
from runner.config.overrides import Typed, apply, parse_overrides, repeated
from runner.config.report import COMMAND_LINE, MOST_PROBLEMS, Problem, Rejected
from runner.config.rewrite import replace_units, without_null_groups
from runner.config.schema import TARGET
from runner.config.stored import read_yaml
from runner.config.targets import CONF
from runner.config.tree import lookup
from runner.config.trust import ADDRESSES, forbidden_problems, targets_of, unnameable_problems
from runner.config.validate import Resolved, check_values, resolve
from runner.runs import CONFIG_FILE, RunFolder, is_config_changed, read_run

FIXED_GROUPS = ("algo", "env", "network", "experiment", "tuned")
FIXED_KEYS = ("env", "network", "seed", "frame_skip")
"""A checkpoint fits only the algorithm, environment and network that it was written by, and their random streams."""
FREE_KEYS = ("env.on_error", "env.max_restarts", "env.step_timeout")
"""What becomes of an environment that fails is no part of what it is."""


@dataclass(frozen=True)
class Resumed:
    """A run to go on with; ``tree`` is its configuration with what was typed now, as it is kept for the next time.

    ``changes`` says in words what is not as it was; ``take`` is the checkpoint to go on from, the newest if ``None``.
    """

    config: dict[str, Any]
    folder: Path
    tree: DictConfig
    changes: list[str]
    take: str | None = None

    def store(self, run: RunFolder) -> None:
        """Write the configuration back, so that what was typed now still holds when the run is resumed again."""
        own: dict[str, Any] = {"resume": None, "explain": False, "trust": []}
        run.store_config(OmegaConf.to_yaml(OmegaConf.merge(expand(self.tree), own)))


def resume(arguments: Arguments, folder: Path, conf: Path = CONF, take: str | None = None) -> Resumed:
    """Check a run's folder and what is typed besides ``resume=``; raises ``Rejected`` with every mistake."""
    record = _read_record(folder)
    stored = read_yaml(folder / CONFIG_FILE)
    composer = Composer(conf, arguments.config_dir, arguments.config_name)
    try:
        resumed = _Resume(arguments, folder, stored, composer, take).run(record)
    except Rejected as error:
        raise _changed(record, folder) or error from None
    if changed := _changed(record, folder):
        raise changed
    return resumed


def _changed(record: Mapping[str, Any], folder: Path) -> Rejected | None:
    """What to say of a stored configuration that is not the one this run wrote, whatever else is wrong with it."""
    if not is_config_changed(record, folder):
        return None
    words = "was damaged, or edited, since this run wrote it: its SHA-256 is not the one in run.json"
    return Rejected([Problem(str(folder / CONFIG_FILE), "run folder", words, "put it back, and type what changes")])


def _read_record(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise Rejected([Problem(f"resume={folder}", COMMAND_LINE, "there is no such folder")])
    try:
        check_folder(folder)
        return read_run(folder)
    except ValueError as error:
        raise Rejected([Problem(f"resume={folder}", COMMAND_LINE, str(error))]) from None


def _is_fixed(key: str) -> bool:
    own = key.removeprefix(f"{MODULES}.").partition(".")[2] if key.startswith(f"{MODULES}.") else key
    return own in ("", MODULES) or (own.split(".")[0] in FIXED_KEYS and own not in FREE_KEYS)


def _fixed(item: Typed, name: str) -> Problem:
    return Problem(item.text, COMMAND_LINE, f"a resumed run keeps its {name}", "leave it out, or start a new run")


def _finished(record: Mapping[str, Any], typed: list[Typed], stored: Mapping[str, Any]) -> Iterator[Problem]:
    key, frames, reason = "total_frames", stored.get("total_frames"), record["reason"]
    is_stopped_by_hook = reason is not None and not reason.startswith(("total_frames", "stop_after"))
    if record["status"] != "done" or is_stopped_by_hook:
        return
    limits = stored.get("stop_after")
    if frames is None and isinstance(limits, Mapping):
        key, frames = "stop_after.updates", limits.get("updates")
    more = [item.values[0] for item in typed if item.key == key and item.values]
    grows = bool(more) and isinstance(frames, int) and isinstance(more[-1], int | float) and more[-1] > frames
    if not grows and not any(item.key.startswith("stop_after") for item in typed):
        yield Problem("resume", COMMAND_LINE, "this run is done", f"{key}=<more than {frames}> lets it go on")


class _Resume:
    def __init__(
        self, arguments: Arguments, folder: Path, stored: dict[str, Any], composer: Composer, take: str | None
    ) -> None:
        self._take = take
        self._folder, self._stored, self._composer = folder, stored, composer
        typed, self._problems = parse_overrides(arguments.overrides, composer, multirun=False)
        typed, problems = usable_choices(without_null_groups(typed), composer)
        self._problems += problems
        self._typed = [item for item in typed if item.key != "resume"]
        for line in repeated(self._typed):
            print(f"note: {line}", file=sys.stderr)
        self._path = folder / CONFIG_FILE
        self._origins = read_stored_origins(self._path)
        self._named: set[str] = set()  # keys of nodes whose targets this command line names

    def run(self, record: Mapping[str, Any]) -> Resumed:
        self._problems += _finished(record, self._typed, self._stored) if self._take is None else ()
        tree = self._compose(record["algo"])
        self._typed = replace_units(self._typed, as_plain(tree), self._composer)
        accepted = list(self._accepted(as_plain(tree)))
        for item in accepted:
            self._note_targets(item.key, item.values[0] if item.values else None)
            problem = apply(tree, item, item.values[0] if item.values else None)
            self._problems += [problem] if problem else []
        self._set_own_keys(tree, accepted)
        resolved = resolve(tree, self._origins)
        config = self._check(resolved)
        before, after = resolve(OmegaConf.create(self._stored), self._origins).values, resolved.values
        if not self._problems and has_checkpoint(record, self._folder):
            self._problems += misfits(before, after, self._origins)
        if self._problems:
            raise Rejected(self._problems)
        return Resumed(config, self._folder, tree, changes(before, after), self._take)

    def _compose(self, algo: str) -> DictConfig:
        """The stored tree, with a fresh node for every group that is typed."""
        base = [f"algo={algo}"] if algo in self._composer.choices("algo") else []
        try:
            tree = expand(OmegaConf.create(self._stored))
            for group in {item.key for item in self._typed if item.is_group and not item.is_hydra}:
                if group in FIXED_GROUPS:
                    continue
                chosen = [text for item in self._typed if item.is_group and item.key == group for text in choose(item)]
                tree[group] = self._composer.compose([*base, "~tuned", *chosen]).tree.get(group)
                self._note_targets(group, as_plain(tree)[group])
                self._origins.typed[group] = COMMAND_LINE
        except (OmegaConfBaseException, ValueError, AssertionError) as error:
            words = f"cannot be read: {' '.join(str(error).split())}"
            raise Rejected([*self._problems, Problem(str(self._path), "run folder", words)]) from None
        return tree

    def _accepted(self, plain: Mapping[str, Any]) -> Iterator[Typed]:
        """The values that may be set; every other override becomes a problem."""
        for item in self._typed:
            name = item.key.split(".")[0]
            if item.is_hydra:
                words = "a resumed run stays in its folder and takes no setting of Hydra"
                self._problems.append(Problem(item.text, COMMAND_LINE, words))
            elif item.is_group:
                self._problems += [_fixed(item, item.key)] if item.key in FIXED_GROUPS else []
            elif problem := check_key(item, plain, self._origins, self._composer):
                self._problems.append(problem)
            elif _is_fixed(item.key) and (not item.values or lookup(plain, item.key) != item.values[0]):
                self._problems.append(_fixed(item, name))
            else:
                self._origins.typed |= dict.fromkeys(item.keys(), COMMAND_LINE)
                yield item

    def _note_targets(self, key: str, value: Any) -> None:
        self._named.update(node for node, _ in targets_of(value, key))
        if key.endswith(f".{TARGET}"):
            self._named.add(key.removesuffix(f".{TARGET}"))
        if key.endswith(f".{SELECTOR}"):
            self._named.add(key)

    def _set_own_keys(self, tree: DictConfig, accepted: list[Typed]) -> None:
        """What concerns only this command is never taken from the folder."""
        typed = {item.key for item in accepted}
        for name, value in {"resume": str(self._folder), "explain": False, "trust": []}.items():
            if name not in typed:
                tree[name] = value
        loggers = as_plain(tree).get("logger")
        for name, logger in loggers.items() if isinstance(loggers, dict) else ():
            for address in ADDRESSES:
                key = f"logger.{name}.{address}"
                if isinstance(logger, dict) and logger.get(address) is not None and key not in typed:
                    OmegaConf.update(tree, key, None)
                    print(f"note: {key} is not read back from a run: type it, to connect there", file=sys.stderr)

    def _check(self, resolved: Resolved) -> dict[str, Any]:
        """Names before values before identities: nothing that is not trusted is imported."""
        listed = resolved.values["trust"]
        trust = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        origin, typed = str(self._path), self._origins.typed
        refused = list(unnameable_problems(resolved.values, trust, self._named, typed, origin))
        if refused:
            self._problems += [*resolved.problems, *refused][:MOST_PROBLEMS]
            return {}
        config, wrong = check_values(resolved, self._origins, self._composer.groups())
        self._problems += wrong
        if not self._problems:
            self._problems += forbidden_problems(config, trust, self._named, origin)
        return config
