"""Savers with one fault each: an item of the state that is not saved, or saved wrong."""

import copy
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.whole.runs import differences

Path = tuple[str | int, ...]


class Mutant(NamedTuple):
    """Items of the state, by a pattern of their paths, of a run that is stopped in a certain scenario."""

    name: str
    pattern: str
    scenario: str = "middle"


MUTANTS = (
    Mutant("the generator of Python", "streams/python"),
    Mutant("the generator of numpy", "streams/numpy"),
    Mutant("the generator of torch", "streams/torch"),
    Mutant("the generator of the sampler", "source/sampler/generator"),
    Mutant("the generator of the exploration", "collector/policy/exploration/generator/state/state"),
    Mutant("one layer of the network", "learner/rl_module/default/q/model/layers.1.weight"),
    Mutant("one layer of the target", "learner/rl_module/default/q/target/model/layers.1.weight"),
    Mutant("the updates since the target was renewed", "learner/rl_module/default/q/target/updates"),
    Mutant("one first moment", "learner/optimizer/default/optimizations/default/optimizer/2/exp_avg"),
    Mutant("one second moment", "learner/optimizer/default/optimizations/default/optimizer/2/exp_avg_sq"),
    Mutant("one step count of the optimizer", "learner/optimizer/default/optimizations/default/optimizer/2/step"),
    Mutant("the updates that were skipped", "learner/optimizer/default/optimizations/default/skipped"),
    Mutant("the actions of the replay", "source/storage/fields/action"),
    Mutant("the cursor of the replay", "source/storage/cursor"),
    Mutant("how many rows are in files", "source/storage/total", "in files"),
    Mutant("the tapes of the episodes", "collector/environment/within"),
    Mutant("the numbers of the episodes", "collector/environment/episodes"),
    Mutant("the running returns", "collector/environment/returns"),
    Mutant("the running lengths", "collector/environment/lengths"),
    Mutant("the env steps (and the learning rate's place)", "progress/env_steps"),
    Mutant("the frames", "progress/frames"),
    Mutant("the updates", "progress/updates"),
    Mutant("the episodes", "progress/episodes"),
    Mutant("the batches", "progress/batches"),
    Mutant("the losses since the last row", "metrics/pending/loss/q"),
    Mutant("the rows that the CSV has", "metrics/loggers/CSVLogger/rows"),
    Mutant("when the last row was due", "log_every/before"),
    Mutant("when the last checkpoint was due", "checkpoint/before"),
    Mutant("when exploration was logged", "log_exploration/before"),
    Mutant("the last returns", "log_reward/returns"),
    Mutant("the return that is to be logged", "metrics/pending/train/return_mean", "after an episode"),
    Mutant("how many episodes were logged", "log_reward/episodes", "between episodes"),
    Mutant("the text that the CSV has", "metrics/loggers/CSVLogger/sha256"),
    Mutant("when the last evaluation was due", "recorder/interval/before"),
    Mutant("the best evaluation", "recorder/best", "ties"),
    Mutant("the best value of early stopping", "early_stopping/best", "ties"),
    Mutant("how long early stopping has waited", "early_stopping/waited", "ties"),
    Mutant("that the run was asked to end", "stop/reason", "asked to end"),
    Mutant("the evaluation that was given up", "unfinished", "evaluating"),
)

EQUIVALENT = {
    "progress/seconds": "a clock",
    "metrics/place": "a clock",
    "metrics/last_row/perf/*": "a clock",
    "metrics/last_row/*": "the row at the end replaces it",
    "metrics/pending/train/n_frames": "the next batch replaces it",
    "metrics/loggers/*/push": "work for whoever saves, that leaves no value",
    "metrics/loggers/*/bytes": "the rows are found by their number, and known by their digest",
    "update_weights/*": "a collector in this process is sent no weights: it has the learner's own",
    "collector/policy/exploration/generator/uinteger": "not used while has_uint32 is 0",
}
"""Items that cannot make a difference to how these runs end, by pattern, and why."""


def leaves(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every item of a nested state that holds something, with its path."""
    if isinstance(state, Mapping):
        parts = list(state.items())
    elif isinstance(state, list | tuple) and not all(isinstance(part, int | float | str) for part in state):
        parts = list(enumerate(state))
    else:
        if not (isinstance(state, list | tuple) and not state):
            yield path, state
        return
    for key, part in parts:
        yield from leaves(part, (*path, key))


def shown(path: Path) -> str:
    return "/".join(map(str, path))


def matching(state: Any, pattern: str, path: Path = ()) -> list[Path]:
    """The paths of the items, or of whole parts, that the pattern names."""
    if fnmatch.fnmatchcase(shown(path), pattern):
        return [path]
    parts = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    return [found for key, part in parts for found in matching(part, pattern, (*path, key))]


def mutated(state: Any, paths: list[Path], initial: Any) -> Any:
    """``state`` with these items as they are in ``initial``, the state of a run that has just been built.

    An item that is there already as it is now is changed instead.
    """
    state = copy.deepcopy(state)
    for path in paths:
        now = _at(state, path)
        then = _then(now, initial, path)
        _put(state, path, _changed(now, path[-1]) if not differences(now, then) else then)
    return state


def _then(now: Any, initial: Any, path: Path) -> Any:
    try:
        then = _at(initial, path)
    except (KeyError, IndexError, TypeError):
        then = None
    if isinstance(now, torch.Tensor | np.ndarray):
        return then if type(then) is type(now) else now ^ now if now.dtype in (torch.bool, np.bool_) else now * 0
    if isinstance(now, list | tuple | dict):
        return then if type(then) is type(now) else type(now)()
    return then if type(then) is type(now) or path[-1] in ("reason", "best", "unjudged") else now


def _changed(value: Any, name: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list | tuple):
        return type(value)(_changed(part, name) for part in value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return ~value if value.dtype in (torch.bool, torch.uint8, np.bool_) else value + 1
    if value is None and name in ("best", "unjudged"):
        return 1.0
    return {"tape": "none", "env_steps": "updates"}.get(value, "other")


def _at(state: Any, path: Path) -> Any:
    for key in path:
        state = state[key]
    return state


def _put(state: Any, path: Path, value: Any) -> None:
    parent = _at(state, path[:-1])
    if isinstance(parent, tuple):
        _put(state, path[:-1], (*parent[: path[-1]], value, *parent[path[-1] + 1 :]))  # type: ignore[operator,misc]
    else:
        parent[path[-1]] = value
