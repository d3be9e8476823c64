"""Metric rows, parameters and status as runs of MLflow: written to a file here, sent from there by another process."""

import json
import logging
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runner.loggers.base import Histogram, Logger, run_name
from runner.loggers.journal import JOURNAL, Journal, Row
from runner.loggers.mlflow_client import FOLDER, MARK, flatten_parameters, is_run_id
from runner.loggers.mlflow_database import address, default_address, without_password
from runner.loggers.mlflow_process import Link
from runner.loggers.mlflow_sender import STATUSES
from runner.spec import CLOCKS, Deferred, StateDict, place_of
from runner.text import file_name, own_command

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
CLOSE_SECONDS = 10.0
START_SECONDS = 60.0
"""Longest wait at the end of a run so short that MLflow is not yet imported on a busy machine."""
PREEMPTED_SECONDS = 3.0
MAX_TIMES = 1000


class MLFlowLogger(Logger):
    """Shows a run in MLflow; whatever the server does, training neither waits nor fails, and each value arrives once.

    Rows that the server does not have when the run ends stay in the run's folder: resuming the run, or
    ``sync=<folder>``, sends them.

    Args:
        run: has ``path``, ``algo``, ``env``, ``seed``, ``config_hash``, ``git_sha``.
        tracking_uri: ``None``: as ``MLFLOW_TRACKING_URI`` says, else SQLite at ``outputs/mlflow.db``.
        experiment: ``None``: ``<algo>-<env>``, or without a run ``exp_name``.
    """

    def __init__(
        self,
        exp_name: str | None = None,
        log_dir: str | Path | None = None,
        run: Any = None,
        tracking_uri: str | None = None,
        experiment: str | None = None,
    ) -> None:
        super().__init__(exp_name, log_dir, run)
        if run is None:
            run = SimpleNamespace(path=self.folder, algo=None, env=None, seed=None, config_hash=None, git_sha=None)
            experiment = experiment or exp_name
        self.uri = address(tracking_uri)
        self.unsent: str | None = None
        self.should_hurry: Callable[[], bool] = lambda: False
        self._run, self._experiment = run, experiment or f"{run.algo}-{run.env}"
        self._journal = Journal(Path(run.path) / JOURNAL)
        self._link = Link(self.uri, self._journal.path)
        self._clock = RowClock()
        self._next_write = 0.0
        self._is_resumed = self._has_begun = self._is_closed = self._is_failing = False

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run, or ``None`` until it is known."""
        return self._link.run_id

    def show_hparams(self, parameters: Mapping[str, Any]) -> None:
        self._begin()
        self._journal.add({"parameters": flatten_parameters(parameters)})
        self.flush()
        self._next_write = 0.0

    def show_video(self, name: str, path: Path, step: int, fps: float) -> None:
        """Send the file to where the run's artifacts are."""
        try:
            own = str(path.absolute().relative_to(Path(self._run.path).absolute()))
        except ValueError:
            raise ValueError(f"{path} is not in {self._run.path}, from which MLflow gets the videos of a run") from None
        self._add_artifact(own)

    def show_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        """Send it as ``histograms/<name>-<step>.json``: of numbers, MLflow knows scalars alone."""
        self._add_artifact(f"histograms/{file_name(name)}-{step}.json", json.dumps(asdict(histogram)))

    def _add_artifact(self, name: str, text: str | None = None) -> None:
        self._begin()
        try:
            self._journal.add({"artifact": name} | ({} if text is None else {"text": text}))
        except OverflowError as error:
            self.warn_once("%s is not sent to MLflow: %s", name, error)

    def take_row(self, row: Mapping[str, float]) -> None:
        self._begin()
        try:
            values = {key: float(value) for key, value in row.items() if key not in CLOCKS}
            step = int(place_of(row, "frames" if "frames" in row else "env_steps"))
            self._journal.add(self._clock.place(step, values))
        except (TypeError, ValueError, OverflowError) as error:
            logger.warning("a row of metrics is not sent to MLflow: %s", error)
        if time.monotonic() >= self._next_write:
            self.flush()

    def flush(self) -> None:
        """Hand what was logged to the sending process; does not wait for it."""
        if not self._has_begun or self._is_closed:
            return
        self._next_write = time.monotonic() + WRITE_SECONDS
        self._write()
        self._link.nudge()

    def close(self, status: str = "done") -> None:
        """Let what waits be sent for some seconds, and the run's status; what is unsent then stays in the folder."""
        if self._is_closed or not (self._has_begun or self._is_resumed):
            return
        self._begin()
        self._write()
        self._is_closed = True
        is_hurried = status == "preempted"
        patience: tuple[Any, ...] = CLOSE_SECONDS, START_SECONDS, self.should_hurry
        if is_hurried:
            patience = PREEMPTED_SECONDS, PREEMPTED_SECONDS
        if self._link.close(STATUSES.get(status, "FAILED"), *patience) and not self._is_failing:
            self._clear()
            return
        count = self._journal.rows - self._link.rows
        reason = f" ({without_password(self.uri)}: {self._link.trouble})" if self._link.trouble else ""
        command = _sync_command(Path(self._run.path), self.uri)
        self.unsent = f"{count} rows of metrics are not in MLflow yet{reason}; to send them: {command}"
        logger.warning("%s", self.unsent)

    def look(self) -> str:
        """What to type, or to open, to look at the run."""
        return look_command(self.uri)

    def state_dict(self) -> StateDict:
        if self._has_begun and not self._is_closed:
            self._write()
        return {"run_id": self.run_id, **self._clock.state_dict(), "push": Deferred(self._journal.push)}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on with the run of ``state``, or of the folder where it names none; only before anything is logged."""
        self._is_resumed = True
        run_id = state.get("run_id") or getattr(self._run, "mlflow_run_id", None)
        self._link.run_id = run_id if is_run_id(run_id) else None
        try:
            self._clock.load_state_dict(state)
            self._journal.cut(below=self._clock.rows)
        except (OSError, TypeError, ValueError) as error:
            logger.warning("rows of metrics that MLflow did not get yet are lost: %s", error)
            self._clear()

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        if not self._is_resumed:
            self._clear()  # rows that an earlier run in this folder left behind
        named = {"experiment": self._experiment, "name": run_name(Path(self._run.path)), "tags": _tags(self._run)}
        named["uri"] = without_password(self.uri)  # whoever sends this later can see where it was meant to go
        self._journal.add({"run": named, "known": self._clock.times})
        self._link.open(may_exist=self._is_resumed)

    def _write(self) -> None:
        try:
            self._journal.write()
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                logger.warning("%s cannot be written (%s); rows are kept in memory", self._journal.path, error)
            self._is_failing = True

    def _clear(self) -> None:
        try:
            self._journal.clear()
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self._journal.path, error)


class RowClock:
    """Numbers the rows of a run, and gives each a time of its own."""

    def __init__(self) -> None:
        self.rows = 0
        self.times: list[int] = []
        self._step = -1

    def place(self, step: int, values: dict[str, float]) -> Row:
        """The next row, at ``step``."""
        now = max(int(time.time() * 1000), self.times[-1] + 1 if self.times else 0)
        self.times = [*self.times[-MAX_TIMES:], now] if step == self._step else [now]
        self._step, number, self.rows = step, self.rows, self.rows + 1
        return Row(number, step, now, values)

    def state_dict(self) -> StateDict:
        """How many rows there were, and when those of the last step were logged."""
        return {"rows": self.rows, "step": self._step, "times": list(self.times)}

    def load_state_dict(self, state: StateDict) -> None:
        self.rows, self._step = int(state.get("rows", 0)), int(state.get("step", -1))
        self.times = [int(timestamp) for timestamp in state.get("times", ())]


def look_command(uri: str) -> str:
    """What to type, or to open, to look at the runs at ``uri``."""
    if uri.startswith(("http://", "https://")):
        return uri
    # Beside the interpreter where its folder is not on the PATH, as when a .venv was not activated.
    beside = Path(sys.executable).with_name("mlflow")
    program = "mlflow" if shutil.which("mlflow") or not beside.exists() else shlex.quote(str(beside))
    if uri.startswith("sqlite:///"):
        uri = f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return f"{program} ui --backend-store-uri {shlex.quote(uri)}"


def _sync_command(folder: Path, uri: str) -> str:
    """What to type to send what is unsent to where it was to go, whatever the environment says then."""
    words = [f"sync={_shown(folder)}"]
    words += [f"logger.mlflow.tracking_uri={without_password(uri)}"] if uri != default_address() else []
    return f"{own_command()} {shlex.join(words)}"


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _tags(run: Any) -> dict[str, str]:
    facts = {"algo": run.algo, "env": run.env, "seed": run.seed, "config_hash": run.config_hash, "git_sha": run.git_sha}
    tags = {f"hookline.{key}": value for key, value in facts.items()} | {"hookline.host": socket.gethostname()}
    tags |= {FOLDER: Path(run.path).absolute(), MARK: getattr(run, "record", {}).get("id")}
    return {key: str(value) for key, value in tags.items() if value is not None}
