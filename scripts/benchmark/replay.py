"""Adding one transition and sampling one batch: our replay buffer, Stable-Baselines3's, and plain tensors.

By priority: our buffer and cpprb's, with the priorities of every batch written back.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark import loops
from scripts.benchmark.rounds import Process, Result, alternate, machine, median, paired, run, table
from scripts.benchmark.setup import is_ready, python_of

Measurements = dict[str, Callable[[int], Result]]

OURS, FLOOR = "hookline", "plain tensors"


def measure_replay(rounds: int) -> None:
    """Print a line for each, uniform buffers first."""
    print(
        f"\ncapacity {loops.CAPACITY:,}, {loops.FILLED:,} filled, {loops.OBSERVATION} + {loops.ACTION} floats, "
        f"batch {loops.BATCH_SIZE}, 1 thread, {rounds} rounds; calls per CPU second\n{machine()}"
    )
    here = Path(sys.executable)
    uniform = {OURS: _measurement(here, "hookline"), FLOOR: _measurement(here, "tensors")}
    _compare("uniform", uniform | _peer("sb3", "sb3"), rounds)
    by_priority = {OURS: _measurement(here, "hookline_prioritized")}
    _compare("by priority", by_priority | _peer("cpprb", "cpprb_prioritized"), rounds)


def _peer(name: str, script: str) -> Measurements:
    if is_ready(name):
        return {name: _measurement(python_of(name), script)}
    print(f"without {name}'s: python scripts/bench.py --setup --only {name} makes its environment")
    return {}


def _compare(title: str, kinds: Measurements, rounds: int) -> None:
    measured = alternate(kinds, rounds)
    rows = [_row(name, results, measured[OURS]) for name, results in measured.items()]
    print(f"\n{title}\n{table(['buffer', 'add 1 + sample 1', 'add only', 'sample only', 'we: x as often'], rows)}")


def _measurement(python: Path, name: str) -> Callable[[int], Result]:
    process = Process(python, f"scripts.benchmark.peers.replay_{name}")
    return lambda index: run(process, lambda folder: [str(folder / "result.json")])


def _row(name: str, results: list[Result], ours: list[Result]) -> list[str]:
    ratio = median(paired([result["both"] for result in results], [result["both"] for result in ours]))
    rates = [median([result[key] for result in results]) for key in ("both", "add", "sample")]
    return [name, *(f"{value:,.0f}" for value in rates), f"{ratio:.2f}"]
