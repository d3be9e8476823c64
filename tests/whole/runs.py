"""Whole runs for tests: composed like on the command line, started here or in a child process that can be killed."""

import csv
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.checkpoint.store import CheckpointStore
from runner.config.arguments import parse_arguments
from runner.config.assemble import Experiment, assemble
from runner.config.check import check
from runner.config.experiment import run_experiment

SHORT = (
    "total_frames=3000", "source.warmup=300", "source.capacity=1000", "source.batch_size=32", "network.hidden=[16,16]",
    "collector.frames_per_batch=10", "evaluation.every.env_steps=1000", "evaluation.episodes=2",
    "evaluation.final_episodes=2", "log_every.env_steps=200", "checkpoint.every.env_steps=500", "logger=csv",
    "~hooks.progress_bar", "tuned=null",
)  # fmt: skip
CLOCK_COLUMNS = "perf/"


def compose(*overrides: str) -> dict[str, Any]:
    return check(parse_arguments([*SHORT, *overrides])).config


def train(config: dict[str, Any]) -> Experiment:
    torch.set_num_threads(config["threads"])
    experiment = assemble(config)
    experiment.trainer.train()
    return experiment


def weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in experiment.networks["q"].state_dict().items()}


def run_in_child(
    config: dict[str, Any],
    folder: Path,
    resume: bool,
    kill: Callable[[], bool] | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> int:
    """Run in a forked child and return its wait status; ``kill`` is asked again and again whether to send ``by``."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        os._exit(_child(config, folder, resume))
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if kill is not None and kill():
            os.kill(pid, by)
            kill = None
        time.sleep(0.0005)


def _child(config: dict[str, Any], folder: Path, resume: bool) -> int:
    with open(folder / "child.txt", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        return run_experiment(config, folder, resume=resume, algo="dqn", env="cartpole").exit_code
    except BaseException as error:
        print(repr(error), flush=True)
        return 1


def state_of(folder: Path) -> dict[str, Any]:
    """The newest checkpoint, without what counts seconds."""
    state, _ = CheckpointStore(run=folder).load()
    state["progress"].pop("seconds")
    state["metrics"].pop("place")
    state["metrics"]["last_row"] = {
        name: value for name, value in state["metrics"]["last_row"].items() if not name.startswith(CLOCK_COLUMNS)
    }
    return state


def rows_of(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv`` as text, without the clock columns."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: cell for name, cell in row.items() if not name.startswith(CLOCK_COLUMNS)} for row in rows]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested states differ by a single bit."""
    if type(one) is not type(other):
        return [f"{path}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        missing = [f"{path}/{name}: only in one" for name in one.keys() ^ other.keys()]
        shared = [name for name in one if name in other]
        return missing + [line for name in shared for line in differences(one[name], other[name], f"{path}/{name}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        return [
            line
            for index, pair in enumerate(zip(one, other, strict=True))
            for line in differences(*pair, f"{path}/{index}")
        ]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        same = one.dtype == other.dtype and np.array_equal(one, other)
    else:
        same = one == other
    return [] if same else [path]
