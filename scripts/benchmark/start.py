"""From the shell to the first env step, and to MLflow's first metric, against what the imports alone take."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark.rounds import ROOT, Failed, Result, alternate, environment, machine, median, paired, table

IMPORTS = "import torch, tensordict, gymnasium"
ENVIRONMENT = "scripts.benchmark.first_step:FirstStep-v0"
LONGEST_SECONDS = 60.0


def measure_start(rounds: int, overrides: list[str]) -> None:
    """Print how long each takes, in turn."""
    print(f"\nfrom the shell, {rounds} rounds; {machine()}")
    kinds: dict[str, Callable[[int], Result]] = {"imports": imports, "run": lambda index: start(overrides)}
    measured = alternate(kinds, rounds)
    rows = [_row(*kind, measured) for kind in KINDS]
    print(table(["until", "seconds", "least", "most", "x the imports", "CPU seconds", "x (CPU)"], rows))


KINDS: tuple[tuple[str, str, str, str | None], ...] = (
    (f'python -c "{IMPORTS}"', "imports", "seconds", "cpu"),
    ("run.py: first env step", "run", "first_step", "cpu"),
    ("run.py: first metric in MLflow's database", "run", "first_metric", None),
)
"""What is shown, which process it comes from, and the names of its wall and CPU seconds."""


def _row(title: str, kind: str, wall: str, cpu: str | None, measured: dict[str, list[Result]]) -> list[str]:
    seconds = [result[wall] for result in measured[kind]]
    cells = [median(seconds), min(seconds), max(seconds), _ratio(measured, kind, wall, "seconds")]
    if cpu is not None:
        cells += [median([result[cpu] for result in measured[kind]]), _ratio(measured, kind, cpu, "cpu")]
    return [title, *(f"{value:.2f}" for value in cells), *[""] * (6 - len(cells))]


def _ratio(measured: dict[str, list[Result]], kind: str, key: str, base: str) -> float:
    return median(paired([result[base] for result in measured["imports"]], [result[key] for result in measured[kind]]))


def imports(index: int) -> Result:
    started, before = time.time(), os.times()
    subprocess.run([sys.executable, "-c", IMPORTS], env=environment(), check=True)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return {"seconds": time.time() - started, "cpu": cpu}


def start(overrides: list[str]) -> Result:
    """One run of ours as typed, in an empty folder; it is ended once MLflow has a metric."""
    with tempfile.TemporaryDirectory(prefix="hookline-bench-") as name:
        folder = Path(name)
        command = [sys.executable, str(ROOT / "run.py"), "algo=dqn", "env=gym", f"env.id={ENVIRONMENT}", *overrides]
        stepped = folder / "first_step"
        settings = {**environment(), "HOOKLINE_FIRST_STEP": str(stepped)}
        started = time.time()
        with (folder / "out.txt").open("wb") as out:
            process = subprocess.Popen(command, cwd=folder, env=settings, stdout=out, stderr=out)
        try:
            first_metric = _await_metric(folder / "outputs/mlflow.db", process) - started
        except TimeoutError as error:
            said = (folder / "out.txt").read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise Failed(f"{error}; the last it said was: {said[-1].strip()}") from None
        finally:
            process.kill()
            process.wait()
        first_step, cpu = map(float, stepped.read_text().split())
        return {"first_step": first_step - started, "cpu": cpu, "first_metric": first_metric}


def _await_metric(database: Path, process: subprocess.Popen) -> float:
    """The time at which the first metric could be read, to 20 ms."""
    deadline = time.time() + LONGEST_SECONDS
    while time.time() < deadline and process.poll() is None:
        if database.exists() and _count_metrics(database):
            return time.time()
        time.sleep(0.02)
    code = process.poll()
    ended = f"within {LONGEST_SECONDS:.0f} s" if code is None else f"before the run ended with exit code {code}"
    raise TimeoutError(f"no metric came to {database} {ended}")


def _count_metrics(database: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            return connection.execute("select count(*) from metrics").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError:  # locked, or not complete yet
        return 0
