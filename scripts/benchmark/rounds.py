"""Whole processes, one after the other: A B C, A B C, ... and what their medians say."""

import json
import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """Something to start: a module by its name, run by an interpreter."""

    python: Path
    module: str
    seconds: float = 3600.0


class Failed(Exception):
    """A process that was to be measured ended otherwise than it should."""


def machine() -> str:
    """The processor and the interpreter, for the head of a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{model}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def environment(threads: int = 1) -> dict[str, str]:
    """Of a measured process: so many threads, no GPU, our modules in reach, and nothing written to this folder."""
    texts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "CKPT_"))}
    return {**kept, **texts, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def run(process: Process, arguments: Callable[[Path], list[str]]) -> Result:
    """Run one process in a folder of its own and return what it wrote to ``result.json`` there, and its seconds.

    Its errors go to a terminal, so that a progress bar is drawn as it is for a user.
    """
    with tempfile.TemporaryDirectory(prefix="hookline-bench-") as name:
        folder = Path(name)
        started = time.time()
        command = [str(process.python), "-m", process.module, *arguments(folder)]
        code, errors = run_on_terminal(command, folder, process.seconds)
        seconds = time.time() - started
        result = folder / "result.json"
        if code or not result.exists():
            last = (errors.strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(f"{process.module} ended with exit code {code}: {last.strip()}")
        return {**json.loads(result.read_text()), "shell": seconds}


def run_on_terminal(command: Sequence[str], folder: Path, seconds: float) -> tuple[int, str]:
    """Exit code and what was said on the error channel, which is a terminal."""
    leader, follower = pty.openpty()
    said: list[bytes] = []
    reader = threading.Thread(target=_read, args=(leader, said), daemon=True)
    reader.start()
    try:
        with (folder / "out.txt").open("wb") as out:
            done = subprocess.run(
                command, cwd=folder, env=environment(), stdout=out, stderr=follower, timeout=seconds, check=False
            )
    finally:
        os.close(follower)
        reader.join(5)
        os.close(leader)
    return done.returncode, b"".join(said[-200:]).decode(errors="replace")


def _read(descriptor: int, said: list[bytes]) -> None:
    while True:
        try:
            text = os.read(descriptor, 65536)
        except OSError:  # the other end was closed
            return
        if not text:
            return
        said.append(text)


def alternate(kinds: Mapping[str, Callable[[int], Result]], rounds: int) -> dict[str, list[Result]]:
    """Measure each kind once per round, in turn; prints a mark for each so that a person sees it move."""
    measured: dict[str, list[Result]] = {kind: [] for kind in kinds}
    for index in range(rounds):
        for kind, measure in kinds.items():
            print(f"\rround {index + 1} of {rounds}: {kind:<24}", end="", file=sys.stderr, flush=True)
            measured[kind].append(measure(index))
    print("\r" + " " * 50 + "\r", end="", file=sys.stderr, flush=True)
    return measured


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """``theirs`` over ``ours``, round by round: both of a round ran within a minute or so."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need be, the first one aligned to the left."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            text.ljust(widths[0]) if not column else text.rjust(widths[column]) for column, text in enumerate(row)
        )
        for row in (header, *rows)
    )
