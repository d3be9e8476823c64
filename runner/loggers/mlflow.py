"""Metric rows, parameters and status as runs of MLflow, sent by a thread of its own."""

import logging
import os
import re
import shlex
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.loggers.mlflow_client import Connection, Target
from runner.loggers.outbox import Outbox, Spool
from runner.spec import StateDict

logger = logging.getLogger(__name__)

SEND_SECONDS = 5.0
CLOSE_SECONDS = 10.0
LONGEST_CLOSE_SECONDS = 60.0
RETRY_AT_CLOSE_SECONDS = 0.3
ROWS_AT_ONCE = 100
SPOOL = "mlflow-unsent.jsonl"
STATUSES = {"done": "FINISHED", "crashed": "FAILED", "preempted": "KILLED"}


class MLFlowLogger:
    """Shows a run in MLflow; whatever the server does, training neither waits nor fails, and each value arrives once.

    Args:
        run: has ``path``, ``algo``, ``env``, ``seed``, ``config_hash``, ``git_sha``.
        tracking_uri: ``None``: as ``MLFLOW_TRACKING_URI`` says, else SQLite at ``outputs/mlflow.db``.
        experiment: ``None``: ``<algo>-<env>``.
    """

    def __init__(self, run: Any, tracking_uri: str | None = None, experiment: str | None = None) -> None:
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri()
        self._run = run
        self._target = Target(self.uri, experiment or f"{run.algo}-{run.env}", _name(Path(run.path)), _tags(run))
        self._outbox = Outbox(Spool(Path(run.path) / SPOOL))
        self._sender = Sender(self._target, self._outbox)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run, or ``None`` until the server has given it one."""
        return self._sender.run_id

    def log_hparams(self, parameters: Mapping[str, Any]) -> None:
        self._sender.parameters = dict(parameters)
        self._sender.begin()

    def log_row(self, row: Mapping[str, float]) -> None:
        self._sender.begin()
        try:
            self._outbox.add(row)
        except (TypeError, ValueError) as error:
            logger.warning("a row of metrics is not sent to MLflow: %s", error)

    def flush(self) -> None:
        """Ask for what waits to be sent now; does not wait for it."""
        self._sender.hurry()

    def close(self, status: str) -> None:
        """Send what waits and set the run's status; after ten seconds of failure, what is unsent goes to a file."""
        self._sender.end(STATUSES.get(status, "FAILED"))

    def look(self) -> str:
        """What to type, or to open, to look at the run."""
        return look_command(self.uri)

    def state_dict(self) -> StateDict:
        return {"run_id": self.run_id, **self._outbox.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on with the run of ``state``, or of the folder where it names none; only before anything is logged."""
        self._sender.resume(state.get("run_id") or getattr(self._run, "mlflow_run_id", None))
        try:
            self._outbox.load_state_dict(state)
        except (OSError, TypeError, ValueError) as error:
            logger.warning("rows of metrics that MLflow did not get yet are lost: %s", error)


class Sender:
    """The thread that talks to MLflow, from the first call of ``begin`` until ``end``."""

    def __init__(self, target: Target, outbox: Outbox) -> None:
        self.run_id: str | None = None
        self.parameters: dict[str, Any] | None = None
        self._target = target
        self._outbox = outbox
        self._connection: Connection | None = None
        self._is_resumed = False
        self._is_failing = False
        self._was_tried = False
        self._final_status: str | None = None
        self._ended_at = float("inf")
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def resume(self, run_id: str | None) -> None:
        self._is_resumed = True
        self.run_id = run_id if isinstance(run_id, str) and re.fullmatch(r"[0-9a-f]{32}", run_id) else None

    def begin(self) -> None:
        if self._thread is None:
            if not self._is_resumed:
                self._outbox.forget_spool()  # rows an earlier run in this folder left behind
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def hurry(self) -> None:
        if not self._is_failing:
            self._wake.set()

    def end(self, status: str) -> None:
        if self._thread is None and not self._is_resumed:
            return
        self.begin()
        self._ended_at = time.monotonic()
        self._final_status = status
        self._wake.set()
        while self._thread and self._thread.is_alive() and not self._is_too_late():
            self._thread.join(0.1)
        self._keep_unsent()

    def _is_too_late(self) -> bool:
        """Whether sending is over: a server that fails gets little time, and so does a run that is told to go."""
        has_patience = not self._is_failing and self._final_status != "KILLED"
        return time.monotonic() > self._ended_at + (LONGEST_CLOSE_SECONDS if has_patience else CLOSE_SECONDS)

    def _keep_unsent(self) -> None:
        try:
            unsent = self._outbox.surrender()
        except OSError as error:
            logger.warning("rows of metrics that MLflow did not get are lost: %s", error)
            return
        if unsent:
            where = self._outbox.spool.path
            logger.warning("%d rows of metrics are not in MLflow; resuming the run sends them from %s", unsent, where)

    def _work(self) -> None:
        delay_seconds = 1.0
        while not self._is_too_late():
            status = self._final_status
            try:
                self._send_all()
                if status is not None:
                    return self._finish(status)
                self._is_failing, delay_seconds, wait_seconds = False, 1.0, SEND_SECONDS
            except Exception as error:  # whatever it is, it must not reach the training thread
                self._complain(error)
                self._outbox.spill()
                wait_seconds, delay_seconds = delay_seconds, min(2 * delay_seconds, 60.0)
            self._wake.wait(wait_seconds if self._final_status is None else RETRY_AT_CLOSE_SECONDS)
            self._wake.clear()

    def _send_all(self) -> None:
        connection = self._connect()
        if self.parameters is not None:
            connection.send_parameters(self.parameters)
            self.parameters = None
        spooled = list(self._outbox.spool.read())
        for begin in range(0, len(spooled), ROWS_AT_ONCE):
            connection.send(spooled[begin : begin + ROWS_AT_ONCE])
        if spooled:
            self._outbox.acknowledge_spool()
        while rows := self._outbox.peek(ROWS_AT_ONCE):
            connection.send(rows)
            self._outbox.acknowledge(rows)

    def _connect(self) -> Connection:
        if self._connection is None:
            was_tried, self._was_tried = self._was_tried, True
            self._connection = Connection(self._target, self.run_id, self._is_resumed or was_tried)
            self.run_id = self._connection.run_id
        return self._connection

    def _finish(self, status: str) -> None:
        if self._connection is not None:
            self._connection.finish(status)

    def _complain(self, error: Exception) -> None:
        if not self._is_failing:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            where = self._target.uri
            logger.warning("MLflow at %s fails; training goes on, metrics are kept for it (%s)", where, reason)
        self._is_failing = True


def default_uri() -> str:
    """MLflow's SQLite file in the working directory's ``outputs``."""
    return f"sqlite:///{Path('outputs').absolute() / 'mlflow.db'}"


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


def _name(folder: Path) -> str:
    """The folder's name; of a sweep's job, whose own says little, with the sweep's before it."""
    is_job = folder.parent.name.endswith("-sweep")
    return f"{folder.parent.name}/{folder.name}" if is_job else folder.name


def _tags(run: Any) -> dict[str, str]:
    facts = {"algo": run.algo, "env": run.env, "seed": run.seed, "config_hash": run.config_hash, "git_sha": run.git_sha}
    facts |= {"host": socket.gethostname(), "folder": Path(run.path).absolute()}
    return {f"hookline.{key}": str(value) for key, value in facts.items() if value is not None}
