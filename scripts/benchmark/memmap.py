"""Checkpoints of a large replay buffer, in memory and in files: the first, and those after little more has come."""

import sys
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark.rounds import Process, Result, alternate, machine, median, run, table

STORAGES = ("tensor", "memmap")


def measure_memmap(rows: int, rounds: int) -> None:
    """Print a line for each storage."""
    print(f"\nseconds of a checkpoint, {rows:,} rows, 10,000 added before the next, {rounds} rounds\n{machine()}")
    measured = alternate({storage: _measurement(storage, rows) for storage in STORAGES}, rounds)
    header = ["source.storage", "first", "second", "third", "second / first"]
    print(table(header, [_row(storage, results) for storage, results in measured.items()]))


def _measurement(storage: str, rows: int) -> Callable[[int], Result]:
    process = Process(Path(sys.executable), "scripts.benchmark.peers.saves_hookline")
    return lambda index: run(process, lambda folder: [str(folder / "result.json"), storage, str(rows)])


def _row(storage: str, results: list[Result]) -> list[str]:
    seconds = [f"{median([result[key] for result in results]):.3f}" for key in ("first", "second", "third")]
    share = median([result["second"] / result["first"] for result in results])
    return [storage, *seconds, f"{100 * share:.1f} %"]
