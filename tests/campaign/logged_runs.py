"""A run whose tracking server misbehaves beside one without loggers, in turns: what logging costs, and what arrives."""

import csv
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.check import check
from runner.config.experiment import open_run
from runner.config.main import main
from runner.loggers.journal import JOURNAL, Row, read_lines
from runner.loggers.mlflow_client import metric_name
from runner.spec import CLOCKS
from tests.campaign.tracking import LightServer, Proxy, RealServer, Script, Values

WORK = ("experiment=cleanrl_dqn_cartpole", "source.warmup=1000", "hooks=default", "~hooks.progress_bar")
ADDRESS = "logger.mlflow.tracking_uri="


class Stretch(NamedTuple):
    """What a part of a run took: seconds on the clock, and of them on the processor for the training thread."""

    wall: float
    cpu: float


class Training:
    """A run that is trained a stretch at a time."""

    def __init__(self, folder: Path, uri: str | None) -> None:
        folder.mkdir()
        config = check(parse_arguments([*WORK, *([f"{ADDRESS}{uri}"] if uri else ["logger=csv"])])).config
        config = config if uri else config | {"logger": {}}
        self.folder, self.run = folder, open_run(config, folder, resume=False, algo="dqn", env="CartPole-v1")
        self.trainer = assemble(config, self.run).trainer
        self.trainer.checkpoint = None
        self.in_loggers = Stretch(0.0, 0.0)
        for logger in self.trainer.metrics.loggers:
            setattr(logger, "log_row", self._clocked(logger.log_row))  # noqa: B010
        self.trainer.metrics.log_hparams(config)

    def _clocked(self, log_row: Any) -> Any:
        def clocked(row: Any) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            log_row(row)
            before = self.in_loggers
            self.in_loggers = Stretch(before.wall + time.perf_counter() - wall, before.cpu + time.thread_time() - cpu)

        return clocked

    def go(self, env_steps: int) -> Stretch:
        self.trainer.total_frames = self.trainer.progress.frames + env_steps
        wall, cpu = time.perf_counter(), time.thread_time()
        self.trainer.train()
        return Stretch(time.perf_counter() - wall, time.thread_time() - cpu)

    def end(self) -> float:
        """Close the loggers; returns how many seconds that took."""
        begun = time.monotonic()
        self.trainer.metrics.close("done")
        mlflow = self.trainer.metrics.loggers[-1]
        self.run.update(status="done", mlflow_run_id=mlflow.run_id)  # type: ignore[attr-defined]
        self.run.unlock()
        return time.monotonic() - begun


class Outcome(NamedTuple):
    """One script's line in the table; ``wall`` and ``cpu`` are relative to a run without loggers, medians of pairs."""

    script: str
    faults: int
    wall: float
    wall_noise: float
    cpu: float
    noise: float
    in_loggers_wall: float
    in_loggers_cpu: float
    close_seconds: float
    kept: int
    rows: int
    expected: int
    missing: int
    twice: int
    status: str

    def line(self) -> str:
        shares = f"{100 * self.in_loggers_wall:>9.2f} %{100 * self.in_loggers_cpu:>9.2f} %"
        wall, cpu = f"{self.wall:>9.3f} +-{self.wall_noise:>6.3f}", f"{self.cpu:>8.3f} +-{self.noise:>6.3f}"
        speed = f"{self.faults:>7}{wall}{cpu}{shares}"
        sent = f"{self.kept:>8}{self.rows:>7}{self.expected:>8}{self.missing:>9}{self.twice:>7}  {self.status}"
        return f"{self.script:<16}{speed}{self.close_seconds:>8.1f} s{sent}"


HEADING = (
    f"{'script':<16}{'faults':>7}{'wall':>9}{'':>9}{'CPU':>9}{'':>9}{'logging':>11}{'of CPU':>11}{'close':>10}"
    f"{'spooled':>8}{'rows':>7}{'values':>8}{'missing':>9}{'twice':>7}  status"
)


def measure(
    name: str, script: Script, server: LightServer | RealServer, folder: Path, pairs: int, env_steps: int
) -> Outcome:
    """Train both runs in turns behind a proxy with that script, then without it let the rest be sent."""
    proxy = Proxy(server.port, script)
    alone, logged = Training(folder / "alone", None), Training(folder / "logged", proxy.uri)
    alone.go(2_000), logged.go(2_000)
    logged.in_loggers, taken = Stretch(0.0, 0.0), []
    try:
        for pair in range(pairs):
            first, second = (alone, logged) if pair % 2 else (logged, alone)
            one, other = first.go(env_steps), second.go(env_steps)
            taken.append((one, other) if pair % 2 else (other, one))
        close_seconds = logged.end()
    finally:
        proxy.stop()
    kept = sum(isinstance(line, Row) for line, _ in read_lines(logged.folder / JOURNAL))
    if kept:
        assert main([f"sync={logged.folder}", f"{ADDRESS}{server.uri}"]) == 0
    expected, run_id = values_in(logged.folder), the_run_of(server, logged.folder)
    present = server.values_of(run_id)
    walls = [with_.wall / without.wall for without, with_ in taken]
    ratios = [with_.cpu / without.cpu for without, with_ in taken]
    return Outcome(
        script=name,
        faults=proxy.faults,
        wall=median(walls),
        wall_noise=noise_of(walls),
        cpu=median(ratios),
        noise=noise_of(ratios),
        in_loggers_wall=logged.in_loggers.wall / sum(with_.wall for _, with_ in taken),
        in_loggers_cpu=logged.in_loggers.cpu / sum(with_.cpu for _, with_ in taken),
        close_seconds=close_seconds,
        kept=kept,
        rows=len(rows_in(logged.folder)),
        expected=expected.total(),
        missing=(expected - present).total(),
        twice=(present - expected).total(),
        status=server.status_of(run_id),
    )


def noise_of(ratios: list[float]) -> float:
    """The standard error of their median, from the median deviation."""
    return 1.253 * 1.483 * median(abs(ratio - median(ratios)) for ratio in ratios) / len(ratios) ** 0.5


def rows_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def values_in(folder: Path) -> Values:
    """What ``metrics.csv`` says was logged, as a server has it."""
    return Counter(
        (metric_name(name), int(row["frames"]), repr(float(cell)))
        for row in rows_in(folder)
        for name, cell in row.items()
        if cell and name not in CLOCKS
    )


def the_run_of(server: LightServer | RealServer, folder: Path) -> str:
    """The id of the one run that came from ``folder``, besides what a server made and denied."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("dqn-CartPole-v1")
    found = client.search_runs([experiment.experiment_id], f"tags.`hookline.folder` = '{folder}'")
    filled = [run.info.run_id for run in found if run.data.metrics]
    assert len(filled) == 1, f"{len(filled)} runs came from {folder}"
    return filled[0]
