"""Saves, loads and whole runs on a disk whose n-th call fails, and what is left when it works again."""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runner.checkpoint.store import CheckpointStore
from runner.config.experiment import run_experiment
from runner.config.jobs import Job, report_failure
from runner.spec import CheckpointError
from tests.campaign.damaged_runs import Ended, in_child
from tests.campaign.disk_errors import LASTING, PLAUSIBLE, Fault, Switch, Watched, watch
from tests.campaign.images import digest, files_under, image_of_state
from tests.whole.runs import differences, end_of

State = dict[str, Any]
SAVED_BEFORE = 2
"""The saves that each case begins with; the one that fails is the next."""

WHERE_ROWS_WERE = tuple(f"/state/metrics/loggers/CSVLogger/{part}" for part in ("rows", "unwritten"))
"""Which metric rows the disk had taken when the last save was made; the rows at the end are compared themselves."""


def states_like(state: State) -> dict[int, State]:
    """Four states of a run, by env step, no two of them equal."""
    return {step: {**state, "mark": {"step": step, "row": torch.full((64,), float(step))}} for step in range(1, 5)}


def save_all(folder: Path, states: dict[int, State], backend: str) -> None:
    store = CheckpointStore(folder, backend=backend)  # type: ignore[arg-type]
    for step in range(1, SAVED_BEFORE + 1):
        store.save(states[step], {"env_steps": step})


def faults_in(calls: dict[str, int]) -> Iterator[Fault]:
    """Every call with every error it may have; where space or rights run out, that may last."""
    for kind, count in calls.items():
        for number in range(1, count + 1):
            for error in PLAUSIBLE[kind]:
                yield Fault(kind, number, error)
            for error in (errno.ENOSPC, errno.EROFS, errno.EIO):
                if error in PLAUSIBLE[kind] and kind in LASTING[error]:
                    yield Fault(kind, number, error, lasts=True)


@dataclass
class Saved:
    """What a child saw of a save that failed, and of the next one."""

    error: str | None
    is_ours: bool
    warnings: list[str]
    loaded: str
    loaded_next: str
    left: list[str]


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def try_save(folder: Path, states: dict[int, State], backend: str, in_background: bool, fault: Fault | None) -> Watched:
    """Save once with the fault and once without, in a child."""

    def work(switch: Switch) -> Saved:
        records = _Records()
        logging.getLogger("runner").addHandler(records)
        store = CheckpointStore(folder, backend=backend)  # type: ignore[arg-type]
        with switch.on():
            error = _save(store, states[3], 3, in_background)
        warnings = list(records.lines)
        loaded = digest(image_of_state(store.load()[0]))
        store.save(states[4], {"env_steps": 4})
        left = sorted(os.listdir(store.folder))
        again = digest(image_of_state(store.load()[0]))
        return Saved(error and str(error), isinstance(error, CheckpointError | None), warnings, loaded, again, left)

    return watch(work, folder, fault)


def _save(store: CheckpointStore, state: State, step: int, in_background: bool) -> Exception | None:
    try:
        if in_background:
            store.save_in_background(state, {"env_steps": step})
            store.wait()
        else:
            store.save(state, {"env_steps": step})
    except Exception as error:
        return error
    return None


def wrong_with_save(watched: Watched, states: dict[int, State], in_background: bool) -> list[str]:
    """What a user would complain of."""
    saved: Saved | None = watched.ended.result
    if saved is None:
        return [f"exit {watched.ended.code}: {watched.ended.output[-400:]}"]
    digests = {step: digest(image_of_state(state)) for step, state in states.items()}
    allowed = {digests[3]} if saved.error is None else {digests[2], digests[3]}
    found = [
        (saved.loaded not in allowed, f"loads neither the old nor the new state after: {saved.error}"),
        (not saved.is_ours, f"an error that is not ours: {saved.error}"),
        (saved.error is not None and "\n" in saved.error, f"more than one line: {saved.error}"),
        (saved.error is not None and "/ckpt" not in saved.error, f"does not say where: {saved.error}"),
        (in_background and (saved.error is not None) != bool(saved.warnings), f"warnings: {saved.warnings}"),
        (saved.loaded_next != digests[4], "the save after it is not the newest"),
        (any(".tmp-" in name for name in saved.left), f"temporaries are left: {saved.left}"),
        ("step-4" not in saved.left or len(saved.left) > 2, f"left are {saved.left}"),
    ]
    return [words for is_wrong, words in found if is_wrong]


def try_load(folder: Path, backend: str, fault: Fault | None) -> Watched:
    """Load in a child; the result is the digest of what was loaded, and the lines about what was not."""

    def work(switch: Switch) -> tuple[str, list[str]]:
        store = CheckpointStore(folder, backend=backend)  # type: ignore[arg-type]
        with switch.on():
            state, _ = store.load()
        return digest(image_of_state(state)), store.rejected

    return watch(work, folder, fault)


def wrong_with_load(watched: Watched, states: dict[int, State]) -> list[str]:
    ended = watched.ended
    if ended.code != 0:
        is_clear = ended.code == 3 and len(ended.output.splitlines()) == 1 and "/ckpt" in ended.output
        return [] if is_clear else [f"exit {ended.code}: {ended.output[-400:]}"]
    loaded, rejected = ended.result
    if loaded == digest(image_of_state(states[2])):
        return []
    if loaded != digest(image_of_state(states[1])):
        return ["loads what was never saved"]
    return (
        [] if len(rejected) == 1 and "step-2 is not used" in rejected[0] else [f"falls back without a word: {rejected}"]
    )


@dataclass
class FaultTable:
    """What became of faults, by the kind of call."""

    title: str
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, fault: Fault, verdict: str, problems: list[str]) -> None:
        row = self.rows.setdefault(fault.kind, {})
        for name in (verdict, *(["wrong"] if problems else [])):
            row[name] = row.get(name, 0) + 1
        self.wrong += [f"{fault}: {problem}" for problem in problems]

    def count(self, verdict: str) -> int:
        return sum(row.get(verdict, 0) for row in self.rows.values())

    def __str__(self) -> str:
        verdicts = sorted({name for row in self.rows.values() for name in row} - {"wrong"})
        lines = [f"{self.title:<44}" + "".join(f"{name:>16}" for name in ("faults", *verdicts, "wrong"))]
        for kind, row in [*self.rows.items(), ("all", {name: self.count(name) for name in (*verdicts, "wrong")})]:
            numbers = [sum(row.get(name, 0) for name in verdicts), *(row.get(name, 0) for name in (*verdicts, "wrong"))]
            lines.append(f"{kind:<44}" + "".join(f"{number:>16}" for number in numbers))
        return "\n".join(lines)


def prepared(template: Path, place: Path) -> Path:
    """A fresh copy of the folder with the states saved before."""
    folder = place / "run"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(template, folder)
    return folder


def run_saves(
    template: Path, place: Path, states: dict[int, State], backend: str, in_background: bool, faults: Iterator[Fault]
) -> FaultTable:
    """Try a save with each of the faults."""
    table = FaultTable(f"save {'in background' if in_background else 'at once'}, {backend}")
    for fault in faults:
        watched = try_save(prepared(template, place), states, backend, in_background, fault)
        problems = wrong_with_save(watched, states, in_background)
        saved = watched.ended.result
        table.add(fault, _verdict(watched, saved is not None and saved.error is not None), problems)
    return table


def run_loads(
    template: Path, place: Path, states: dict[int, State], backend: str, faults: Iterator[Fault]
) -> FaultTable:
    """Try a load with each of the faults; no file may change by it."""
    table = FaultTable(f"load, {backend}")
    for fault in faults:
        folder = prepared(template, place)
        watched = try_load(folder, backend, fault)
        problems = wrong_with_load(watched, states)
        problems += ["files were changed"] if files_under(folder) != files_under(template) else []
        table.add(fault, _verdict(watched, watched.ended.code != 0), problems)
    return table


def _verdict(watched: Watched, is_told: bool) -> str:
    if not watched.failed:
        return "not reached"
    return "error told" if is_told else "got over it"


def try_run(config: dict[str, Any], folder: Path, fault: Fault | None, resume: bool = False) -> Watched:
    """A whole run, or what is left of one, whose folder has the fault."""
    folder.mkdir(parents=True, exist_ok=True)

    def work(switch: Switch) -> Any:
        with switch.on():
            exit_as_run_py_does(config, folder, resume)

    return watch(work, folder, fault)


def exit_as_run_py_does(config: dict[str, Any], folder: Path, resume: bool = False) -> None:
    """Run, print what went wrong, and leave with the exit code for that; tracebacks go to a log that is not kept."""
    logging.lastResort = None
    try:
        code = run_experiment(config, folder, resume=resume, algo="dqn", env="cartpole").exit_code
    except Exception as error:
        report_failure(error, Job(0, "", folder), is_sweep=False)
        code = getattr(error, "exit_code", 1)
    raise SystemExit(code)


def finish(config: dict[str, Any], folder: Path) -> Ended:
    """Go on with the run, on a disk that works; how it ended, and all that must be the same bits."""

    def work() -> Any:
        has_begun = (folder / "run.json").exists()
        run_experiment(config, folder, resume=has_begun, algo="dqn", env="cartpole")
        return end_of(config, folder)

    return in_child(work, seconds=60)


def wrong_with_run(watched: Watched, config: dict[str, Any], folder: Path, whole: Any) -> list[str]:
    """A run ends well, or with one line; gone on with, it is the run that had no fault."""
    ended = watched.ended
    lines = [line for line in ended.output.splitlines() if not line.startswith(("warning: ", "go on "))]
    problems = [f"traceback: {ended.output[-600:]}"] if "Traceback" in ended.output else []
    if ended.code not in (0, 1, 2, 3):
        problems.append(f"exit {ended.code}: {ended.output[-400:]}")
    if ended.code != 0 and len(lines) != 1:
        problems.append(f"exit {ended.code} in {len(lines)} lines: {ended.output[-600:]}")
    if ended.code == 0:
        end: Callable[[], Any] = lambda: end_of(config, folder)  # noqa: E731
        gone_on = in_child(end, seconds=60)
    else:
        gone_on = finish(config, folder)
    if gone_on.code != 0:
        return [*problems, f"cannot go on: exit {gone_on.code}: {gone_on.output[-400:]}"]
    left = [str(path) for path in folder.rglob("*") if ".tmp-" in path.name or path.name.endswith(".new")]
    if ended.code != 0:  # else there was no later start, or save, to remove them
        problems += [f"left are {left}"] if left else []
    different = [path for path in differences(gone_on.result, whole) if not path.startswith(WHERE_ROWS_WERE)]
    return problems + [f"another run: {path}" for path in different[:3]]
