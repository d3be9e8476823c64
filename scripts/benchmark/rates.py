"""How fast our runs are and where their time goes: three rates, and microseconds per env step by phase.

Rates are of the steady state, after the warm-up, with the progress bar, CSV and MLflow on. CPU time counts all threads
of the process, the loggers' too, and is what to compare on a machine that others use as well.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from runner.config.arguments import parse_arguments
from runner.config.assemble import Experiment, assemble
from runner.config.check import check
from runner.config.experiment import open_run

PHASES = ("env", "policy", "store", "sample", "update", "hooks", "log")


class Measured(NamedTuple):
    """Seconds of one stretch of a run, and how far it went."""

    env_steps: int
    updates: int
    cpu: float
    wall: float

    def per_step(self) -> float:
        return self.cpu / self.env_steps * 1e6


def measure_rates(overrides: list[str], steps: int, repeats: int) -> None:
    """Print the table for one configuration."""
    config = check(parse_arguments(overrides)).config
    torch.set_num_threads(config["threads"])
    print(f"{' '.join(overrides)}: {torch.get_num_threads()} threads, torch {torch.__version__}")
    report(config, steps, repeats)


def report(config: dict[str, Any], steps: int, repeats: int) -> None:
    """Measure each rate ``repeats`` times in turn, then the phases once, and print both."""
    kinds: dict[str, Callable[[], Measured]] = {
        "env": lambda: collect(config, steps, is_random=True),
        "env + inference": lambda: collect(config, steps, is_random=False),
        "env + inference + training": lambda: train(config, steps)[0],
    }
    measured = {kind: [] for kind in kinds}  # type: dict[str, list[Measured]]
    for _ in range(repeats):
        for kind, measure in kinds.items():
            measured[kind].append(measure())
    for kind, rows in measured.items():
        rates = [row.env_steps / row.wall for row in rows]
        cpu = [row.per_step() for row in rows]
        print(
            f"{kind:<28}{statistics.median(rates):>10,.0f} env steps/s   "
            f"{statistics.median(cpu):>7.1f} us CPU per env step ({min(cpu):.1f} to {max(cpu):.1f})"
        )
    total, phases, final_return = train(config, steps, is_split=True)
    print(f"updates per env step {total.updates / total.env_steps:.3f}, final return {final_return:.0f}")
    split = {**phases, "loop": total.wall - sum(phases.values())}
    parts = "  ".join(f"{phase} {seconds / total.env_steps * 1e6:.1f}" for phase, seconds in split.items())
    print(f"us wall per env step by phase: {parts}")


def collect(config: dict[str, Any], steps: int, is_random: bool) -> Measured:
    """Play without learning: random actions only, or greedy ones only."""
    collector = {**config["collector"], "init_random_frames": 2**40 if is_random else 0}
    exploration = config["exploration"] if is_random else None
    experiment = assemble({**config, "hooks": {}, "collector": collector, "exploration": exploration})
    batches = iter(experiment.trainer.collector or ())
    next(batches)
    with stopwatch() as seconds:
        played = 0
        while played < steps:
            played += next(batches).numel()
    return Measured(played, 0, *seconds)


def train(config: dict[str, Any], steps: int, is_split: bool = False) -> tuple[Measured, dict[str, float], float]:
    """Train past the warm-up, then measure; with ``is_split`` also how the time divides into phases."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = begin_in(Path(folder), config)
        trainer = experiment.trainer
        _train_until(experiment, experiment.source.warmup + 2_000)
        phases: defaultdict[str, float] = defaultdict(float)
        if is_split:
            split(experiment, phases)
        before = trainer.progress.env_steps, trainer.progress.updates
        with stopwatch() as seconds:
            _train_until(experiment, trainer.progress.env_steps + steps)
        progress = trainer.progress
        measured = Measured(progress.env_steps - before[0], progress.updates - before[1], *seconds)
        final_return = experiment.evaluation.run().metrics()["eval/return_mean"]
        trainer.metrics.close("done")
        return measured, {phase: phases[phase] for phase in PHASES}, final_return


def begin_in(folder: Path, config: dict[str, Any]) -> Experiment:
    """A run with everything it has for a user, which writes only in ``folder``."""
    logger = {**config["logger"]}
    if "mlflow" in logger:
        logger["mlflow"] = {**logger["mlflow"], "tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    config = {**config, "logger": logger}
    experiment = assemble(config, open_run(config, folder, resume=False, algo="bench", env="bench"))
    experiment.trainer.metrics.log_hparams(config)
    return experiment


def _train_until(experiment: Experiment, env_steps: int) -> None:
    trainer = experiment.trainer
    trainer.total_frames, trainer.stop_reason = env_steps * trainer.progress.frame_skip, None
    trainer.checkpoint = None
    trainer.train()


def split(experiment: Experiment, phases: defaultdict[str, float]) -> None:
    """Put a clock around the methods of each phase."""
    trainer: Any = experiment.trainer
    collector = trainer.collector
    parts = {
        "env": [(collector.environment, "step")],
        "policy": _methods_that_act(collector.policy),
        "store": [(trainer.source, "extend")],
        "sample": [(trainer.source, "sample")],
        "update": [(trainer.learner, "compute_losses"), (trainer.learner, "step")],
        "log": [(trainer, "write_row"), (trainer.metrics, "add")],
    }
    for phase, methods in parts.items():
        for owner, name in methods:
            setattr(owner, name, clocked(getattr(owner, name), phase, phases))
    learning = {"ReplayBufferTrainer", "OptimizerHook", "UpdateWeights"}
    for operations in trainer._operations.values():
        for index, one in enumerate(operations):
            owner = getattr(one.original, "__self__", one.original)
            if type(owner).__name__ not in learning:
                operations[index] = one._replace(operation=clocked(one.operation, "hooks", phases))


def _methods_that_act(policy: Any) -> list[tuple[Any, str]]:
    """None of which calls another of them."""
    if policy.exploration is None or not policy.exploration.noise_size:
        return [(policy, "greedy"), *([(policy.exploration, "plan")] if policy.exploration else [])]
    acting = policy.exploration
    return [(policy, "outputs"), (policy, "describe"), (acting, "plan"), (acting, "explore")]


def clocked(function: Callable[..., Any], phase: str, phases: defaultdict[str, float]) -> Callable[..., Any]:
    """The function, with its wall time added to its phase."""

    def timed(*arguments: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **kwargs)
        finally:
            phases[phase] += time.perf_counter() - started

    return timed


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """CPU and wall seconds of the block, in a list that is filled at its end."""
    seconds: list[float] = []
    cpu, wall = time.process_time(), time.perf_counter()
    yield seconds
    seconds += [time.process_time() - cpu, time.perf_counter() - wall]
