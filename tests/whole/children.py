"""Runs in processes of their own: forked from this warm one within milliseconds, or started afresh by run.py."""

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runner.config.check import CONF
from runner.config.experiment import run_experiment
from runner.config.signals import stop_at_once
from runner.runs import read_run
from runner.spec import HooklineError

ROOT = CONF.parent
PATIENCE_SECONDS = 120.0
"""A child that takes longer hangs."""


class Child:
    """One attempt at a run; ``end`` of it is an exit code, negative for the signal that killed it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder
        self.since = time.monotonic()
        self.end: int | None = None
        self._descriptor = os.pidfd_open(pid)

    def has_ended(self, within_seconds: float = 0.0) -> bool:
        """Whether it ends within that time; waits no longer than it must."""
        if self.end is None and select.select([self._descriptor], [], [], max(within_seconds, 0.0))[0]:
            self.end = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._descriptor)
        return self.end is not None

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if not self.has_ended():
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """How it ends; one that hangs is killed, and fails the test."""
        if not self.has_ended(seconds):
            self.send(signal.SIGKILL)
            self.has_ended(PATIENCE_SECONDS)
            raise AssertionError(f"still running after {seconds:g} s in {self.folder}: {self.output()}")
        assert self.end is not None
        return self.end

    def kill(self) -> int:
        self.send(signal.SIGKILL)
        return self.wait()

    def output(self) -> str:
        """What it has printed."""
        return (self.folder.with_suffix(".txt")).read_text()


def fork(config: dict[str, Any], folder: Path, prepare: Callable[[], Any] = lambda: None) -> Child:
    """Begin the run of ``config`` in ``folder``, or go on with it; ``prepare`` is called in the child before that."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            _leave_parent(folder.with_suffix(".txt"))
            prepare()
            code = _run(config, folder)
            sys.stdout.flush()
        finally:
            os._exit(code)
    return Child(pid, folder)


def _leave_parent(output: Path) -> None:
    """Output and signals of its own, whatever pytest, or the shell that started it, does with them."""
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    take_signals()
    stop_at_once()


def _run(config: dict[str, Any], folder: Path) -> int:
    try:
        return run_experiment(config, folder, resume=has_run(folder), algo="dqn", env="cartpole").exit_code
    except HooklineError as error:
        print(error)
        return error.exit_code


def spawn(overrides: Sequence[str], folder: Path, is_named: bool = True) -> Child:
    """The same by ``python run.py``, in a process that has to import everything; it may choose the folder itself."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [*overrides, *([f"hydra.run.dir={folder}"] if is_named else [])]
    if has_run(folder):
        words = [f"resume={folder}", "trust=[tests]"]
    with open(folder.with_suffix(".txt"), "a") as output:
        output.write(f"$ run.py {shlex.join(words)}\n")
        output.flush()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *words],
            cwd=folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=take_signals,
        )
    process.returncode = 0  # it is waited for here, not by subprocess
    return Child(process.pid, folder)


def take_signals() -> None:
    """Let signals work as in a shell, even where whoever started the tests ignores them (nohup, a background job)."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def has_run(folder: Path) -> bool:
    return (folder / "run.json").exists()


def is_done(folder: Path) -> bool:
    return has_run(folder) and read_run(folder)["status"] == "done"


def half_written(folder: Path) -> list[str]:
    """What a save that is under way, or was killed, has beside the finished checkpoints."""
    try:
        return [entry.name for entry in os.scandir(folder / "ckpt") if ".tmp-" in entry.name]
    except FileNotFoundError:
        return []
