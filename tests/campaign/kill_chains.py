"""Chains of kills: a run is begun, killed, resumed, killed again, and at last let to its end."""

import functools
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runner.checkpoint.store import CheckpointStore
from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.spec import CheckpointError
from tests.whole.children import ROOT, Child, fork, half_written, is_done, spawn
from tests.whole.runs import ANY, ON_POLICY, SHORT, compose, differences, end_of, saves_of

ANYWHERE = (
    "env.num_envs=2", "checkpoint.every.env_steps=100", "log_every.env_steps=130",
    "evaluation.every.env_steps=450",
    "--config-dir", str(ROOT / "tests" / "campaign" / "conf"), "hooks=[default,early_stopping,count_frames,drawn]",
    "hooks.early_stopping.patience=100", "hooks.log_exploration.every.env_steps=210",
)  # fmt: skip
"""All kinds of state at once, with intervals that do not come round together with the checkpoints'."""
CAMPAIGN = (*ANYWHERE, "target_updater=fixed", "target_updater.update_frequency=30", "source.capacity=400")
"""The same of runs that replay."""

IN_A_SAVE = 0.45
"""So many of the kills wait for a save, the others come at any instant."""


STORAGES = ("tensor", "memmap")


class Kind(NamedTuple):
    """What is varied."""

    backend: str
    storage: str
    seed: int
    frames: int = 2400
    device: str = "cpu"

    def overrides(self) -> list[str]:
        return [*CAMPAIGN, f"source.storage={self.storage}", *self.settings()]

    def settings(self) -> list[str]:
        """Those of any run."""
        varied = f"checkpoint.backend={self.backend}", f"seed={self.seed}", f"total_frames={self.frames}"
        return [*varied, f"device={self.device}"]

    def arguments(self) -> list[str]:
        """All that is typed on the command line."""
        return [*SHORT, *self.overrides()]

    def config(self) -> dict[str, Any]:
        return _checked(*self.arguments())


class OnPolicy(Kind):
    """Of batches that are gone through some times and then forgotten, so that ``storage`` is no choice."""

    def overrides(self) -> list[str]:
        return [*ANYWHERE, *self.settings()]

    def arguments(self) -> list[str]:
        return [*ANY, *ON_POLICY, *self.overrides()]


@functools.cache
def _checked(*arguments: str) -> dict[str, Any]:
    return check(parse_arguments(arguments)).config


_compose = functools.cache(compose)


@dataclass
class Chain:
    """One run of a kind and what became of it; ``random_seed`` draws the kills."""

    kind: Kind
    is_fresh: bool
    random_seed: int
    kills: list[str] = field(default_factory=list)
    in_a_save: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        how = "fresh" if self.is_fresh else "forked"
        kills = ", ".join(self.kills)
        return f"{self.kind} {how}, random seed {self.random_seed}, kills {kills}: {'; '.join(self.problems[:5])}"


def begin(chain: Chain, folder: Path) -> Child:
    """Begin the run, or go on with it."""
    if chain.is_fresh:
        return spawn(chain.kind.arguments(), folder)
    return fork(chain.kind.config(), folder)


def play(chain: Chain, folder: Path, kills: int, seconds: float, uninterrupted: dict[str, Any]) -> None:
    """Kill the run ``kills`` times, or as often as it can be before it is done, and compare how it ends.

    ``seconds`` is how long one of its kind takes.
    """
    draw = random.Random(chain.random_seed)
    while len(chain.kills) < kills and not is_done(folder):  # it may be killed when it was done
        child = begin(chain, folder)
        wait = wait_for_a_save if draw.random() < IN_A_SAVE else wait_for_any_instant
        if wait(child, draw, seconds):
            break
        finished = finished_steps(folder)
        if child.kill() != -signal.SIGKILL:
            break
        note_kill(chain, child, finished)
    if child.end not in (0, -signal.SIGKILL):
        chain.problems.append(f"a run ended with {child.end}: {child.output()[-500:]}")
    elif not is_done(folder) and (child := begin(chain, folder)).wait() != 0:
        chain.problems.append(f"the resumed run ended with {child.end}: {child.output()[-500:]}")
    else:
        chain.problems += differences(end(chain, folder), uninterrupted)
        chain.problems += [f"{name} is left" for name in half_written(folder)]
    said = folder.with_suffix(".txt").read_text().splitlines()
    chain.problems += [f"lost: {line}" for line in said if "is not used" in line]


def end(chain: Chain, folder: Path) -> dict[str, Any]:
    """Everything that a kill must not change."""
    return {**end_of(chain.kind.config(), folder), "saves": saves_of(folder)}


def wait_for_any_instant(child: Child, draw: random.Random, seconds: float) -> bool:
    """True if it ends before the instant comes."""
    return child.has_ended(draw.uniform(0, seconds))


def wait_for_a_save(child: Child, draw: random.Random, seconds: float) -> bool:
    """Until some way into one of the next saves; true if it ends before."""
    for _ in range(draw.randint(1, 8)):
        for awaited in (True, False):
            while bool(half_written(child.folder)) != awaited:
                if child.has_ended(0.0003):
                    return True
    while not half_written(child.folder):
        if child.has_ended(0.0003):
            return True
    return child.has_ended(draw.choice((0, 0.002, 0.005, 0.01)))


def finished_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints that there are."""
    names = [path.name.split(".")[0] for path in (folder / "ckpt").glob("step-*") if ".tmp-" not in path.name]
    return [int(name.removeprefix("step-")) for name in names]


def note_kill(chain: Chain, child: Child, finished: Sequence[int]) -> None:
    """Count it, and see that what had been saved before is still to be had."""
    in_a_save = bool(half_written(child.folder))
    chain.in_a_save += in_a_save
    chain.kills.append(f"{time.monotonic() - child.since:.3f} s{' in a save' if in_a_save else ''}")
    if finished:
        try:
            _, manifest = CheckpointStore(run=child.folder).load()
            if manifest["counters"]["env_steps"] < max(finished):
                chain.problems.append(f"lost: step {max(finished)} was saved, {manifest['counters']} is loaded")
        except CheckpointError as error:
            chain.problems.append(f"lost: {error}")


def table(chains: Sequence[Chain]) -> str:
    """One line for each kind, and what it comes to."""
    lines = [
        f"{'backend':<14}{'storage':<9}{'seed':>4}{'kills':>7}{'in a save':>11}{'fresh':>7}{'identical':>11}{'lost':>6}"
    ]
    for kind in sorted({chain.kind for chain in chains}):
        lines.append(
            "{:<14}{:<9}{:>4}{:>7}{:>11}{:>7}{:>11}{:>6}".format(
                *kind[:3], *_sums(chains, lambda k, kind=kind: k == kind)
            )
        )
    kills, in_a_save, fresh, identical, lost = _sums(chains, lambda kind: True)
    return "\n".join([*lines, f"{kills} kills, {in_a_save} inside a save, {fresh} of fresh processes: "
                              f"{identical} bit-identical, {lost} lost"])  # fmt: skip


def _sums(chains: Sequence[Chain], is_counted: Callable[[Kind], bool]) -> tuple[int, int, int, int, int]:
    counted = [chain for chain in chains if is_counted(chain.kind)]
    return (
        sum(len(chain.kills) for chain in counted),
        sum(chain.in_a_save for chain in counted),
        sum(len(chain.kills) for chain in counted if chain.is_fresh),
        sum(len(chain.kills) for chain in counted if not chain.problems),
        sum(problem.startswith("lost") for chain in counted for problem in chain.problems),
    )
