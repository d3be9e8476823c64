"""Runs whose environment does one thing wrong: how they end, what they say, and whether anything was lost."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.envs import single, watch
from tests.envs.faulty import ALWAYS, Faulty
from tests.whole.children import Child, fork
from tests.whole.runs import CLOCK_COLUMNS, compose, differences, end_of

SHORT = (
    "env=gym", "total_frames=500", "source.warmup=100", "source.batch_size=16", "network.hidden=[8,8]",
    "evaluation.every.env_steps=250", "log_every.env_steps=100", "checkpoint.every.env_steps=150",
    "env.max_episode_steps=500",
)  # fmt: skip
QUICK = (*SHORT, "compile=none")
"""Of the many runs here; recording gradients takes each of them a second."""
AT = 280
"""The call of a step at which it happens: after the at most 60 of the trial, and before the first evaluation."""
AT_RESET = 10
DEADLINE = 0.5
MAX_RESTARTS = 3
TRAINING = r"env 0, episode \d+ \(seed \d+\), step \d+: "
EVALUATION = r"evaluation env \d, episode \d+ \(seed \d+\), step \d+: "
LATE = rf" has not come back within {DEADLINE} s \(env\.step_timeout\), it is in faulty\.py:\d+"
LOST = r" raised RuntimeError in faulty\.py:\d+: the simulator lost its connection"


@dataclass(frozen=True)
class Fault:
    """A kind of fault and what is said of it; ``instance`` 0 is the training's, 1 the evaluation's first.

    Args:
        goes_on: it ends no run; ``is_harmless``: and changes nothing.
        is_final: once it has happened, nothing can be saved or made anew.
    """

    kind: str
    words: str
    at: int = AT
    instance: int = 0
    options: tuple[str, ...] = ()
    goes_on: bool = False
    is_harmless: bool = False
    is_final: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}{' in evaluation' if self.instance else ''}"


_TIMED = (f"env.step_timeout={DEADLINE}",)
FAULTS = (
    Fault("step raises", TRAINING + "step" + LOST),
    Fault("step exits", TRAINING + r"step raised SystemExit in faulty\.py:\d+: 0"),
    Fault("step sleeps", TRAINING + "step" + LATE, options=_TIMED),
    Fault("step spins", TRAINING + "step" + LATE, options=_TIMED),
    Fault("step locks up in C", TRAINING + "step" + LATE + ", and cannot be", options=_TIMED, is_final=True),
    Fault("observation NaN", TRAINING + r"the observation is nan at \[2\]"),
    Fault("observation inf", TRAINING + r"the observation is -inf at \[1\]"),
    Fault("observation too short", TRAINING + r"the observation has the shape \(3,\); its space declares \(4,\)"),
    Fault("observation would be broadcast", TRAINING + r"the observation has the shape \(1,\)"),
    Fault("observation of strings", TRAINING + r"the observation has the dtype <U\d+; its space declares float32"),
    Fault("observation None", TRAINING + "the observation has the dtype object"),
    Fault("reward NaN", TRAINING + "the reward is nan"),
    Fault("reward None", TRAINING + "the reward is None, which is no number"),
    Fault("old tuple", TRAINING + r"step must return \(observation, .*\): not enough values to unpack"),
    Fault("reset raises", TRAINING + "reset" + LOST, at=AT_RESET),
    Fault("reset sleeps", TRAINING + "reset" + LATE, at=AT_RESET, options=_TIMED),
    Fault("reset NaN", TRAINING + r"the observation is nan at \[3\]", at=AT_RESET),
    Fault("reset returns no info", TRAINING + r"reset must return \(observation, info\)", at=AT_RESET),
    Fault("make raises", r"env 0, episode 0, step 0: making it raised OSError in faulty\.py:\d+: no license", at=1),
    Fault("step raises", EVALUATION + "step" + LOST, instance=1),
    Fault("reward NaN", EVALUATION + "the reward is nan", instance=1),
    Fault("step sleeps", EVALUATION + "step" + LATE, instance=1, options=_TIMED),
    Fault("observation out of space", r"step \d+: the observation is 100\.0 at \[0\], outside of", goes_on=True),
    Fault("never ends", TRAINING + "this episode has lasted more than 100 steps", goes_on=True),
    Fault("prints binary", "^done: total_frames", goes_on=True, is_harmless=True),
    Fault("close raises", "^done: total_frames", goes_on=True, is_harmless=True),
)  # fmt: skip


@dataclass
class Row:
    """What became of one fault: with ``on_error=raise``, with a restart that helps, and with restarts that do not."""

    fault: Fault
    cells: dict[str, str] = field(default_factory=dict)
    line: str = ""
    problems: list[str] = field(default_factory=list)

    def expect(self, is_so: bool, problem: str) -> None:
        if not is_so:
            self.problems.append(f"{self.fault.name}: {problem}")


class Scene:
    """Faulty runs in a folder, and one without faults to compare them with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clean = self._config(Fault("none", ""), folder / "nothing")
        child = fork(self.clean, folder / "clean", _forget)
        assert child.wait() == 0, said_by(child)
        self.reference = self._end(folder / "clean")

    def _config(self, fault: Fault, mended: Path, times: int = 1, *options: str) -> Any:
        make = f"kind: '{fault.kind}', at: {fault.at}, times: {times}, instance: {fault.instance}, mended: '{mended}'"
        own = "+env.make={_target_: tests.envs.faulty.Faulty, " + make + "}"
        return compose(*QUICK, own, *fault.options, *options)

    def _end(self, folder: Path) -> Any:
        """All that must be the same, but how often environments were made anew."""
        end = end_of(self.clean, folder)
        end["state"]["collector"]["environment"].pop("guard")
        table = end["state"]["metrics"]["loggers"]["CSVLogger"]
        table["columns"] = [name for name in table["columns"] if not name.startswith(CLOCK_COLUMNS)]
        return {part: end[part] for part in ("state", "replay", "rows", "record")}

    def lost(self, folder: Path) -> list[str]:
        """What is not as it is without the fault."""
        return differences(self.reference, self._end(folder))

    def run(self, fault: Fault, name: str, times: int = 1, *options: str) -> tuple[Child, Path]:
        folder = self.folder / f"{fault.name.replace(' ', '-')}-{name}"
        config = self._config(fault, folder.with_suffix(".mended"), times, *options)
        child = fork(config, folder, _forget)
        child.wait()
        return child, folder

    def raises(self, row: Row, is_resumed: bool = True) -> None:
        """With ``on_error=raise``: one line, exit code 1, saved, and mended it goes on as if nothing had been."""
        fault = row.fault
        child, folder = self.run(fault, "raise", ALWAYS if fault.goes_on else 1)
        said = said_by(child)
        row.cells["raise"] = f"exit {child.end}"
        row.line = next((line for line in said.splitlines() if re.search(fault.words, line)), "")
        row.expect(row.line != "" and "Traceback" not in said, f"what is said is {said}")
        row.expect(child.end == int(not fault.goes_on), f"exit {child.end}: {said}")
        if fault.goes_on:
            self._compare(row, "raise", folder, is_equal=fault.is_harmless)
            return
        record = json.loads((folder / "run.json").read_text())
        row.expect(record["status"] == "crashed" and row.line[:40] in record["reason"], f"run.json: {record['reason']}")
        is_saved = "saved at env step" in row.line
        row.cells["raise"] += ", saved" if is_saved else ""
        row.expect(is_saved or fault.is_final or fault.kind == "make raises", f"not saved: {row.line}")
        if is_resumed:
            folder.with_suffix(".mended").touch()
            child = fork(self.clean, folder, _forget)
            row.expect(child.wait() == 0, f"resumed, it ends with {child.end}: {said_by(child)}")
            self._compare(row, "raise", folder)

    def _compare(self, row: Row, cell: str, folder: Path, is_equal: bool = True) -> None:
        if is_equal:
            lost = self.lost(folder)
            row.cells[cell] += f", lost {lost}" if lost else ", all equal"
            row.expect(lost == [], f"in the end not equal: {lost}")

    def restarts_once(self, row: Row) -> None:
        """With ``on_error=restart``, a fault that passes leaves no trace but a count."""
        child, folder = self.run(row.fault, "once", 1, "env.on_error=restart")
        row.cells["restart"] = f"exit {child.end}"
        said = said_by(child)
        row.expect(child.end == int(row.fault.is_final), f"exit {child.end}: {said}")
        if row.fault.is_final or row.fault.goes_on:
            return
        row.expect(re.search(row.fault.words + r".*made anew \(1 of at most 100 times\)", said) is not None, said)
        row.expect("restarts    1 of environments that failed, 0 episodes cut short" in said, said)
        counted = json.loads((folder / "run.json").read_text())["metrics"].get("perf/env_restarts")
        row.expect(counted == 1, f"counted: {counted}")
        self._compare(row, "restart", folder)

    def restarts_in_vain(self, row: Row) -> None:
        """With ``on_error=restart``, an environment that is broken for good ends the run once it may not restart."""
        if row.fault.is_final or row.fault.goes_on:
            return
        options = ("env.on_error=restart", f"env.max_restarts={MAX_RESTARTS}")
        child, _ = self.run(row.fault, "always", ALWAYS, *options)
        row.cells["restart in vain"] = f"exit {child.end}, after {MAX_RESTARTS}"
        limit = rf"and {MAX_RESTARTS} restarts have been made, env\.max_restarts={MAX_RESTARTS}"
        row.expect(child.end == 1, f"broken for good, it ends with {child.end}: {said_by(child)}")
        row.expect(re.search(row.fault.words + ".*; " + limit, said_by(child)) is not None, said_by(child))


def said_by(child: Child) -> str:
    return child.folder.with_suffix(".txt").read_text(errors="replace")


def _forget() -> None:
    """In a child: count from here, let a hundred steps be a long episode and a second a long time to wait."""
    Faulty.calls = Faulty.faults = Faulty.made = 0
    single.LONG_EPISODE = 100
    watch.GRACE_SECONDS = 1.0


def table(rows: list[Row]) -> str:
    """One line for each fault, and the line that the run ended with."""
    heads = ("raise", "restart", "restart in vain")
    lines = [f"{'fault':<32}" + "".join(f"{head:<32}" for head in heads) + "what is said"]
    for row in rows:
        said = row.line.removeprefix("warning: ")[:140]
        lines.append(f"{row.fault.name:<32}" + "".join(f"{row.cells.get(head, '-'):<32}" for head in heads) + said)
    return "\n".join(lines)
