"""Whole runs for tests: composed like on the command line, and compared bit by bit."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.builders import acting_network
from runner.checkpoint.store import CheckpointStore
from runner.config.arguments import parse_arguments
from runner.config.assemble import Experiment, assemble
from runner.config.check import check
from runner.runs import RunFolder

OFF_POLICY = (
    "source.warmup=300", "source.capacity=1000", "source.batch_size=32", "collector.frames_per_batch=10",
)  # fmt: skip
ON_POLICY = (
    "algo=ppo", "env.num_envs=2", "collector.frames_per_batch=20", "source.batch_size=10", "source.epochs=2",
)  # fmt: skip
ANY = (
    "total_frames=3000", "network.hidden=[16,16]", "evaluation.every.env_steps=1000", "evaluation.episodes=2",
    "evaluation.final_episodes=2", "log_every.env_steps=200", "checkpoint.every.env_steps=500", "logger=csv",
    "~hooks.progress_bar", "tuned=null",
)  # fmt: skip
SHORT = (*ANY, *OFF_POLICY)
RECURRENT = (
    *(word for word in (*ANY, *ON_POLICY) if not word.startswith("network.")),
    "network=actor_critic_recurrent", "network.encoded=8", "network.features=8", "source.sequence_length=5",
)  # fmt: skip
OFFLINE = (
    "network.hidden=[16,16]", "stop_after.updates=900", "source.batch_size=32", "evaluation.every.updates=300",
    "evaluation.episodes=2", "evaluation.final_episodes=2", "log_every.updates=70", "checkpoint.every.updates=150",
    "logger=csv", "~hooks.progress_bar", "tuned=null",
)  # fmt: skip
CLOCK_COLUMNS = "perf/"
OF_THE_COMMAND_LINE = {".hydra", "command.txt", "run.log"}
"""What is in a run's folder only where ``run.py`` began it."""


def compose(*overrides: str) -> dict[str, Any]:
    return check(parse_arguments([*SHORT, *overrides])).config


def compose_recurrent(*overrides: str) -> dict[str, Any]:
    return check(parse_arguments([*RECURRENT, *overrides])).config


def compose_on_policy(*overrides: str) -> dict[str, Any]:
    return check(parse_arguments([*ANY, *ON_POLICY, *overrides])).config


def compose_offline(path: Path, *overrides: str) -> dict[str, Any]:
    return check(parse_arguments(["algo=cql", f"source.path={path}", *OFFLINE, *overrides])).config


def train(config: dict[str, Any]) -> Experiment:
    torch.set_num_threads(config["threads"])
    experiment = assemble(config)
    experiment.trainer.train()
    experiment.environment.guard.watch.stop()  # the next test may count threads
    return experiment


def weights(experiment: Experiment) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in acting_network(experiment.networks).state_dict().items()}


def state_of(folder: Path) -> dict[str, Any]:
    """The newest checkpoint, without what counts seconds."""
    state, _ = CheckpointStore(run=folder).load()
    state["progress"].pop("seconds")
    state["metrics"].pop("place")
    state["metrics"]["last_row"] = without_clocks(state["metrics"]["last_row"])
    for logger in state["metrics"]["loggers"].values():
        for of_text in ("bytes", "sha256"):  # of a file that has clock columns
            logger.pop(of_text, None)
    return state


def replay_of(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The transitions that a resumed run would have, wherever they are kept."""
    # On the CPU: a process that has used a GPU cannot be forked any more.
    experiment = assemble({**config, "device": "cpu", "logger": {}}, RunFolder.open(folder))
    experiment.trainer.load_from_file()
    storage: Any = getattr(experiment.source, "storage", None)
    experiment.environment.close()
    if storage is None:  # a dataset, which is nobody's but its own
        return {}
    rows = {str(key): field[: storage.filled_rows].clone() for key, field in storage.fields.items()}
    return {"rows": rows, "cursor": storage.cursor, "filled_rows": storage.filled_rows}


def record_of(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says of how the run went, without clocks."""
    record = json.loads((folder / "run.json").read_text())
    kept = {name: record[name] for name in ("status", "reason", "best")}
    progress = {name: count for name, count in record["progress"].items() if name != "seconds"}
    return {**kept, "metrics": without_clocks(record["metrics"]), "progress": progress}


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(CLOCK_COLUMNS)}


def rows_of(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv`` as text, without the clock columns."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [without_clocks(row) for row in rows]


def saves_of(folder: Path) -> int:
    """How many checkpoints the run has made in its life, as far as those it goes on from know."""
    return CheckpointStore(run=folder).load()[1]["sequence"]


def end_of(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All that must be the same bits however often a run was killed: its state, replay rows, metric rows, record."""
    return {
        "state": state_of(folder),
        "replay": replay_of(config, folder),
        "rows": rows_of(folder),
        "record": record_of(folder),
        "files": sorted({path.name for path in folder.iterdir()} - OF_THE_COMMAND_LINE),
    }


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
