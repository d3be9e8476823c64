"""What changes when a run goes on with other settings, and what its checkpoints cannot follow; needs no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.folder import CHECKPOINTS
from runner.config.origins import Origins
from runner.config.relations import columns, is_asynchronous
from runner.config.report import Problem, Rejected, show
from runner.config.schema import TARGET
from runner.config.stored import read_yaml
from runner.config.tree import ABSENT, all_keys, lookup
from runner.config.validate import resolve
from runner.runs import CONFIG_FILE, NOT_OF_THE_RUN, find_unfinished

OPTIMIZERS = "runner.learner.optimizers."
FEW = 3
"""Settings in which a run may differ from another one and still be the one that was meant."""
LEAVE_OUT = "leave it out, or start a new run"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``key: old -> new`` for every value that is another one than it was."""
    leaves = [key for key in dict.fromkeys([*all_keys(before), *all_keys(after)]) if _is_leaf(key, before, after)]
    return [
        f"{key}: {_shown(lookup(before, key))} -> {_shown(lookup(after, key))}"
        for key in leaves
        if key.partition(".")[0] not in NOT_OF_THE_RUN and lookup(before, key) != lookup(after, key)
    ]


def nearly_the_same(outputs: Path, config: Mapping[str, Any]) -> str | None:
    """The unfinished run under ``outputs`` that differs in the fewest settings, and in which, if they are few."""
    near = []
    for folder in find_unfinished(outputs):
        try:
            stored = OmegaConf.create(read_yaml(folder / CONFIG_FILE))
            before = resolve(stored, Origins()).values
        except (Rejected, OmegaConfBaseException, ValueError):
            continue
        lines = changes(_plain(before), _plain(config))
        near += [(len(lines), f"{folder} differs in {', '.join(lines)}")] if 0 < len(lines) <= FEW else []
    return min(near, default=(0, None))[1]


def _plain(tree: Any) -> Any:
    """As JSON has it, without what is empty: a checked configuration names groups that were left out."""
    if isinstance(tree, Mapping):
        inner = {str(key): _plain(value) for key, value in tree.items()}
        return {key: value for key, value in inner.items() if value not in (None, {}, [])}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _is_leaf(key: str, *trees: Mapping[str, Any]) -> bool:
    return not any(isinstance(lookup(tree, key), Mapping) for tree in trees)


def _shown(value: Any) -> str:
    return "(nothing)" if value is ABSENT else show(value)


def has_checkpoint(record: Mapping[str, Any], folder: Path) -> bool:
    """Whether the run has saved, as far as one can tell without opening anything."""
    return record.get("saved_env_steps") is not None or any((folder / CHECKPOINTS).glob("step-*"))


def misfits(before: Mapping[str, Any], after: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    """What the checkpoints of a run with the settings ``before`` cannot go on with."""
    kept, wanted = _kind(before), _kind(after)
    if kept and wanted and kept != wanted:
        words = f"a resumed run keeps its optimizer, of whose moments its checkpoints are: {kept}, not {wanted}"
        yield Problem("optimizer", origins.of("optimizer"), words, LEAVE_OUT)
    restore = lookup(after, "learner.restore")
    if restore not in (ABSENT, None, {}) and restore != lookup(before, "learner.restore"):
        words = "a resumed run goes on with its own weights, and takes none of another run"
        yield Problem("learner.restore", origins.of("learner.restore"), words, LEAVE_OUT)
    rows, batches = columns(before), columns(after)
    if is_asynchronous(before) != is_asynchronous(after):
        words = "a resumed run keeps its replay rows: whether each worker has batches of its own cannot change"
        yield Problem("collector", origins.of("collector"), words, LEAVE_OUT)
    elif rows and batches and rows != batches:
        words = (
            f"a resumed run keeps its replay rows, of {rows} environments each; these settings give rows of {batches}"
        )
        yield Problem("collector", origins.of("collector"), words, LEAVE_OUT)
    if lookup(before, "source.storage") != "memmap":
        return
    for key, reason in {
        "source.storage": "its replay rows are in files, from which none can be taken into memory",
        "source.capacity": "its replay rows are in files, whose ring has a size of its own",
    }.items():
        old, new = lookup(before, key), lookup(after, key)
        if ABSENT not in (old, new) and old != new:
            words = f"a resumed run keeps {key}={old}: {reason}"
            yield Problem(f"{key}={new}", origins.of(key), words, LEAVE_OUT)


def _kind(config: Mapping[str, Any]) -> str | None:
    """Which of our optimizers this is; whether another one can go on is found out when it is made."""
    target, decay = lookup(config, f"optimizer.{TARGET}"), lookup(config, "optimizer.weight_decay")
    if not (isinstance(target, str) and target.startswith(OPTIMIZERS)):
        return None
    name = target.removeprefix(OPTIMIZERS)
    return f"{name} with weight_decay" if name == "adam" and decay not in (ABSENT, 0) else name
