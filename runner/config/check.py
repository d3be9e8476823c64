"""Everything about a configuration that can be checked before Hydra runs and before torch is imported."""

import copy
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.config.arguments import Arguments
from runner.config.composer import Composer, Composition, as_plain
from runner.config.env_ids import unknown_env_ids
from runner.config.groups import choose, usable_choices
from runner.config.hydra_settings import hydra_problems
from runner.config.keys import check_key, with_guess
from runner.config.modules import expand, is_of_module, is_of_modules
from runner.config.overrides import MOST_VALUES, Typed, apply, parse_overrides, repeated, sweep_problems
from runner.config.report import Problem, Rejected
from runner.config.rewrite import Rewriter, replace_units, without_null_groups
from runner.config.targets import CONF
from runner.config.tree import all_keys
from runner.config.validate import validate
from runner.runs import RUN_FILE

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
"""Holds the ``hydra_plugins`` namespace, the only place that Hydra loads sweepers and launchers from."""
MOST_COMBINATIONS = 32


@dataclass
class Checked:
    """A configuration that may run: the overrides for Hydra, and the first (or only) job's values."""

    overrides: list[str]
    config: dict[str, Any]
    choices: dict[str, Any]
    hydra: DictConfig
    typed: list[Typed] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def is_typed(self, key: str) -> bool:
        return any(item.key == key for item in self.typed)

    def count_jobs(self) -> int:
        """How many jobs a sweep has; 0 where only the sweeper knows."""
        swept = [item for item in self.typed if item.is_sweep]
        is_plain = self.choices.get("hydra/sweeper") == "basic" and not OmegaConf.select(self.hydra, "sweeper.params")
        is_known = is_plain and all(len(item.values) < MOST_VALUES and not item.is_interval for item in swept)
        return math.prod(len(item.values) for item in swept) if is_known else 0

    def swept(self) -> tuple[str, ...]:
        return tuple(item.key for item in self.typed if item.is_sweep)


def extend_import_path(config_dir: Path | None) -> None:
    """Make the user's own packages importable: those beside the shell and those beside their configurations.

    What lies in a run's folder is no package, wherever the shell is: nobody vouches for it.
    """
    here = [] if _is_in_run(Path.cwd()) else [Path.cwd()]
    beside = [config_dir.absolute().parent] if config_dir else []
    for folder in (*here, *beside, SWEEPS):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _is_in_run(folder: Path) -> bool:
    return any(os.path.lexists(one / RUN_FILE) for one in (folder, *folder.parents))


def check(arguments: Arguments, conf: Path = CONF) -> Checked:
    """Check what was typed; raises ``Rejected`` with every mistake."""
    return _Check(arguments, Composer(conf, arguments.config_dir, arguments.config_name)).run()


def _as_hydra_takes_it(item: Typed) -> str:
    """The override as typed; one that adds keys to a mapping, which Hydra would refuse, is told to add them."""
    is_mapping = not item.is_group and any(isinstance(value, dict) for value in item.values)
    adds = is_mapping or (not item.is_group and is_of_module(item.key))
    return f"++{item.text}" if adds and not item.prefix else item.text


class _Check:
    def __init__(self, arguments: Arguments, composer: Composer) -> None:
        self._multirun, self._composer, self._groups = arguments.multirun, composer, composer.groups()
        typed, self._unreadable = parse_overrides(arguments.overrides, composer, arguments.multirun)
        usable, self.problems = usable_choices(typed, composer)
        self._mended = {item.key for item in usable if item not in typed}  # groups whose choice is only a guess
        self._typed = without_null_groups(usable)
        self._params: list[Typed] = []  # what the sweeper of a file sweeps over; Hydra reads that itself
        self._notices: list[str] = []

    def run(self) -> Checked:
        self._notices += repeated(self._typed)
        first = self._compose_first()
        self._add_params(first)
        if self._params:
            first = self._compose_first()
        first = self._rewrite(first)
        config: dict[str, Any] = {}
        for number, groups in enumerate(self._combinations()):
            composition = first if number == 0 else self._compose(groups)
            checked = self._check_composition(composition) if composition else {}
            config = config or checked
        self.problems += sweep_problems(self._all, first.choices["hydra/sweeper"])
        self.problems += hydra_problems(self._typed, first, self._multirun)
        self._raise_problems(as_plain(first.tree))
        texts = [_as_hydra_takes_it(item) for item in self._typed]
        return Checked(texts, config, first.choices, first.hydra, self._typed, self._notices)

    @property
    def _all(self) -> list[Typed]:
        return [*self._params, *self._typed]

    def _raise_problems(self, tree: dict[str, Any] | None = None) -> None:
        """What cannot be read comes first, with the nearest key if all keys are known."""
        keys = [*all_keys(tree), *self._groups] if tree else []
        unreadable = [with_guess(problem, keys, self._composer) for problem in self._unreadable]
        problems = [problem for problem in self.problems if not self._follows(problem)]
        if unreadable or problems:
            raise Rejected([*unreadable, *problems])

    def _follows(self, problem: Problem) -> bool:
        """Whether something is only wrong because a choice was guessed: our own files are right where they belong."""
        if self._mended and problem.origin.startswith(f"{self._composer.conf.name}/"):
            return True
        guessed = {problem.key.partition(".")[0], "algo", "experiment"}  # these two choose of other groups, too
        return problem.message.startswith("missing") and not guessed.isdisjoint(self._mended)

    def _compose_first(self) -> Composition:
        composition = self._compose(next(self._combinations()))
        if composition is None:
            self._raise_problems()
        assert composition is not None
        return composition

    def _add_params(self, composition: Composition) -> None:
        """Sweeps may stand in a file, as ``hydra.sweeper.params``."""
        params = OmegaConf.select(composition.hydra, "sweeper.params") if self._multirun else None
        for key, value in (params or {}).items():
            origin = f"hydra.sweeper.params, {composition.origins.of(f'hydra.sweeper.params.{key}')}"
            typed, problems = parse_overrides([f"{key}={value}"], self._composer, True, origin)
            usable, unusable = usable_choices(typed, self._composer)
            self._params += without_null_groups(usable)
            self.problems += [*problems, *unusable]

    def _combinations(self) -> Iterator[tuple[str, ...]]:
        """The choices of groups to compose: all combinations where they are few, else each choice once."""
        chosen = [choose(item) for item in self._all if item.is_group]
        product = itertools.product(*chosen)
        if len(combinations := list(itertools.islice(product, MOST_COMBINATIONS + 1))) <= MOST_COMBINATIONS:
            yield from combinations
            return
        first = tuple(options[0] for options in chosen)
        yield first
        for place, options in enumerate(chosen):
            yield from ((*first[:place], option, *first[place + 1 :]) for option in options[1:])

    def _compose(self, groups: Sequence[str]) -> Composition | None:
        try:
            return self._composer.compose(list(groups))
        except Rejected as error:
            self.problems += error.problems
            return None

    def _rewrite(self, composition: Composition) -> Composition:
        self._typed = replace_units(self._typed, as_plain(composition.tree), self._composer)
        rewriter = Rewriter(self._composer, composition)
        drops_tuned = rewriter.other_env(self._typed)
        if not drops_tuned:
            rewriter.stale_tuned(self._typed)
        self._typed = [*rewriter.added, *self._typed]
        self._notices += rewriter.notices
        return self._compose_first() if drops_tuned else composition

    def _check_composition(self, composition: Composition) -> dict[str, Any]:
        """Check the keys, then the values of the first job, then every other value of each sweep."""
        plain = self._with_modules(composition)
        items = []
        for item in self._all:
            if not item.is_group and not item.is_hydra:
                problem = check_key(item, plain, composition.origins, self._composer)
                self.problems += [problem] if problem else []
                adds = not item.prefix and is_of_module(item.key)  # to what the files do not say of that module
                items += [] if problem else [replace(item, prefix="++") if adds else item]
        composition.origins.typed |= {key: item.origin for item in items if item.prefix != "~" for key in item.keys()}
        config = self._check_values(composition, [(item, item.values[0]) for item in items if item.values])
        for swept in items:
            for value in swept.values[1:]:
                others = [(item, value if item is swept else item.values[0]) for item in items if item.values]
                self._check_values(composition, others)
        return config

    def _with_modules(self, composition: Composition) -> dict[str, Any]:
        """The tree with every module that is named in it, or typed, and all that can be said of each."""
        tree = copy.deepcopy(composition.tree)
        for item in self._all:
            if is_of_modules(item.key) and item.prefix != "~" and item.values and isinstance(item.values[0], dict):
                apply(tree, replace(item, prefix="++"), item.values[0])
        return as_plain(expand(tree))

    def _check_values(self, composition: Composition, values: list[tuple[Typed, Any]]) -> dict[str, Any]:
        tree = copy.deepcopy(composition.tree)
        refused = [problem for item, value in values if (problem := apply(tree, item, value))]
        config, problems = validate(tree, composition.origins, self._groups, as_plain(composition.hydra))
        self.problems += [*refused, *problems]
        if any(item.key == "env.id" for item, _ in values):
            self.problems += unknown_env_ids(config, composition.origins)
        return config
