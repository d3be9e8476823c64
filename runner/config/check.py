"""Everything about a configuration that can be checked before Hydra runs and before torch is imported."""

import copy
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.config.arguments import Arguments
from runner.config.composer import Composer, Composition, as_plain
from runner.config.env_ids import unknown_env_ids
from runner.config.groups import choose, usable_choices
from runner.config.keys import check_key
from runner.config.overrides import Typed, apply, parse_overrides
from runner.config.report import COMMAND_LINE, Problem, Rejected, did_you_mean, nearest_key
from runner.config.rewrite import Rewriter, replace_units, without_null_groups
from runner.config.targets import CONF
from runner.config.tree import ABSENT, all_keys, lookup
from runner.config.validate import validate

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

    def swept(self) -> tuple[str, ...]:
        return tuple(item.key for item in self.typed if item.is_sweep)


def extend_import_path(config_dir: Path | None) -> None:
    """Make the user's own packages importable: those beside the shell and those beside their configurations."""
    beside = [config_dir.absolute().parent] if config_dir else []
    for folder in (Path.cwd(), *beside, SWEEPS):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def check(arguments: Arguments, conf: Path = CONF) -> Checked:
    """Check what was typed; raises ``Rejected`` with every mistake."""
    return _Check(arguments, Composer(conf, arguments.config_dir, arguments.config_name)).run()


def _as_hydra_takes_it(item: Typed) -> str:
    """The override as typed; one that adds keys to a mapping, which Hydra would refuse, is told to add them."""
    is_mapping = not item.prefix and not item.is_group and any(isinstance(value, dict) for value in item.values)
    return f"++{item.text}" if is_mapping else item.text


class _Check:
    def __init__(self, arguments: Arguments, composer: Composer) -> None:
        self._multirun, self._composer, self._groups = arguments.multirun, composer, composer.groups()
        typed, self.problems = parse_overrides(arguments.overrides, composer, arguments.multirun)
        self._typed, problems = usable_choices(without_null_groups(typed), composer)
        self.problems += problems
        self._notices: list[str] = []

    def run(self) -> Checked:
        first = self._compose(0)
        if first is None:
            raise Rejected(self.problems)
        first = self._rewrite(first)
        config: dict[str, Any] = {}
        for number, groups in enumerate(self._combinations()):
            composition = first if number == 0 else self._compose_choices(groups)
            checked = self._check_composition(composition) if composition else {}
            config = config or checked
        self._check_hydra(first)
        if self.problems:
            raise Rejected(self.problems)
        texts = [_as_hydra_takes_it(item) for item in self._typed]
        return Checked(texts, config, first.choices, first.hydra, self._typed, self._notices)

    def _combinations(self) -> Iterator[tuple[str, ...]]:
        """The choices of groups to compose: all combinations where they are few, else each choice once."""
        chosen = [choose(item) for item in self._typed if item.is_group]
        product = itertools.product(*chosen)
        if len(combinations := list(itertools.islice(product, MOST_COMBINATIONS + 1))) <= MOST_COMBINATIONS:
            yield from combinations
            return
        first = tuple(options[0] for options in chosen)
        yield first
        for place, options in enumerate(chosen):
            yield from ((*first[:place], option, *first[place + 1 :]) for option in options[1:])

    def _compose(self, number: int) -> Composition | None:
        return self._compose_choices(next(itertools.islice(self._combinations(), number, None)))

    def _compose_choices(self, groups: Sequence[str]) -> Composition | None:
        try:
            return self._composer.compose(list(groups))
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError, AssertionError) as error:
            causes = [text for text in (str(error.__cause__ or ""), str(error)) if text]
            words = " ".join(causes[0].split()) if causes else type(error).__name__
            self.problems.append(Problem(" ".join(groups) or "conf/config.yaml", COMMAND_LINE, words))
            return None

    def _rewrite(self, composition: Composition) -> Composition:
        self._typed = replace_units(self._typed, as_plain(composition.tree), self._composer)
        rewriter = Rewriter(self._composer, composition)
        rewriter.stale_tuned(self._typed)
        drops_tuned = rewriter.other_env(self._typed)
        self._typed = [*rewriter.added, *self._typed]
        self._notices += rewriter.notices
        return (self._compose(0) or composition) if drops_tuned else composition

    def _check_composition(self, composition: Composition) -> dict[str, Any]:
        """Check the keys, then the values of the first job, then every other value of each sweep."""
        plain = as_plain(composition.tree)
        items = []
        for item in self._typed:
            if not item.is_group and not item.is_hydra:
                problem = check_key(item, plain, composition.origins, self._groups)
                self.problems += [problem] if problem else []
                items += [] if problem else [item]
        composition.origins.typed |= {key for item in items if item.prefix != "~" for key in item.keys()}
        config = self._check_values(composition, [(item, item.values[0]) for item in items if item.values])
        for swept in items:
            for value in swept.values[1:]:
                others = [(item, value if item is swept else item.values[0]) for item in items if item.values]
                self._check_values(composition, others)
        return config

    def _check_values(self, composition: Composition, values: list[tuple[Typed, Any]]) -> dict[str, Any]:
        tree = copy.deepcopy(composition.tree)
        refused = [problem for item, value in values if (problem := apply(tree, item, value))]
        config, problems = validate(tree, composition.origins, self._groups)
        self.problems += [*refused, *problems]
        if any(item.key == "env.id" for item, _ in values):
            self.problems += unknown_env_ids(config, composition.origins)
        return config

    def _check_hydra(self, composition: Composition) -> None:
        tree = {"hydra": as_plain(composition.hydra)}
        for item in self._typed:
            if not item.is_hydra or item.is_group:
                continue
            if item.key == "hydra.mode":
                self.problems.append(
                    Problem(item.text, COMMAND_LINE, "the mode is not a setting", "use -m for a sweep")
                )
            elif item.prefix in ("", "~") and lookup(tree, item.key) is ABSENT:
                guess = did_you_mean(nearest_key(item.key, list(all_keys(tree))))
                self.problems.append(Problem(item.key, COMMAND_LINE, "Hydra has no such setting", guess))
            elif item.prefix == "" and (problem := self._apply_hydra(composition, item)):
                self.problems.append(problem)

    def _apply_hydra(self, composition: Composition, item: Typed) -> Problem | None:
        tree = DictConfig({"hydra": copy.deepcopy(composition.hydra)})
        return apply(tree, item, item.values[0])
