"""What is said to MLflow, and how: one run, its parameters, and batches of metrics that arrive once."""

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any

from runner.loggers.outbox import Row

logger = logging.getLogger(__name__)

MAX_METRICS = 1000
MAX_PARAMETERS = 100
MAX_VALUE_CHARACTERS = 500
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # MLflow's own retries take minutes; ours know when the run ends.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
}
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


@dataclass(frozen=True)
class Target:
    """Where a run is to appear, and what is known about it from the start."""

    uri: str
    experiment: str
    run_name: str
    tags: dict[str, str] = field(default_factory=dict)


class Connection:
    """An MLflow run that rows can be sent to; made on the sending thread, because importing MLflow takes a second.

    Args:
        run_id: the run to go on with; ``None``, or a run that the server does not have: a new one.
        is_resumed: whether parts of the run may have been sent before.
    """

    def __init__(self, target: Target, run_id: str | None, is_resumed: bool) -> None:
        self._client = _open_client(target.uri)
        self._known: dict[str, set[int]] = {}
        self._sent_keys: set[str] = set()
        run = self._find(target, run_id) if is_resumed else None
        if run is None:
            run = self._create(target)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._sent_keys = set(run.data.metrics)
        self._parameters: dict[str, str] = dict(run.data.params)
        self.run_id: str = run.info.run_id

    def send_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Parameters cannot change in MLflow; what a resumed run overrides becomes a tag beside them."""
        from mlflow.entities import Param, RunTag

        flat = flatten_parameters(parameters)
        new = [Param(key, value) for key, value in flat.items() if key not in self._parameters]
        changed = {key: value for key, value in flat.items() if self._parameters.get(key, value) != value}
        tags = [RunTag(f"hookline.override.{key}"[:250], value) for key, value in changed.items()]
        for begin in range(0, len(new), MAX_PARAMETERS):
            self._client.log_batch(self.run_id, params=new[begin : begin + MAX_PARAMETERS])
        for begin in range(0, len(tags), MAX_PARAMETERS):
            self._client.log_batch(self.run_id, tags=tags[begin : begin + MAX_PARAMETERS])
        self._parameters |= flat

    def send(self, rows: Iterable[Row]) -> None:
        """Send the values that the server does not have from before the run was resumed."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, row.timestamp_ms, row.step)
            for row in rows
            for name, value in ((metric_name(key), value) for key, value in row.values.items())
            if row.step not in self._steps_of(name)
        ]
        for begin in range(0, len(metrics), MAX_METRICS):
            self._send_batch(metrics[begin : begin + MAX_METRICS])

    def finish(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    def _send_batch(self, metrics: list[Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self.run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            # One bad value must not hold up all others for ever: halve the batch until it stands alone.
            if len(metrics) == 1:
                logger.warning("MLflow refuses %s = %r: %s", metrics[0].key, metrics[0].value, _line(error))
                return
            middle = len(metrics) // 2
            self._send_batch(metrics[:middle])
            self._send_batch(metrics[middle:])

    def _steps_of(self, name: str) -> set[int]:
        """The steps at which the server had this metric when the run was resumed."""
        if name not in self._known:
            history = self._client.get_metric_history(self.run_id, name) if name in self._sent_keys else ()
            self._known[name] = {metric.step for metric in history}
        return self._known[name]

    def _find(self, target: Target, run_id: str | None) -> Any:
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                run = self._client.get_run(run_id)
                return run if run.info.lifecycle_stage == "active" else None
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                logger.warning("MLflow at %s has no run %s; its metrics go on in a new one", target.uri, run_id)
                return None
        # Killed after the run was made, before its id was written down: the folder's name is on it.
        experiment = self._client.get_experiment_by_name(target.experiment)
        folder = target.tags.get("hookline.folder", "").replace("'", "")
        found = experiment and self._client.search_runs(
            [experiment.experiment_id], f"tags.`hookline.folder` = '{folder}'", max_results=1
        )
        return found[0] if found else None

    def _create(self, target: Target) -> Any:
        experiment_id = self._experiment_id(target)
        return self._client.create_run(experiment_id, tags=target.tags, run_name=target.run_name)

    def _experiment_id(self, target: Target) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(target.experiment)
        if experiment is None:
            try:
                return self._client.create_experiment(target.experiment, artifact_location=_artifacts(target.uri))
            except MlflowException:  # another run of the same sweep was faster
                experiment = self._client.get_experiment_by_name(target.experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id


def flatten_parameters(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and texts of at most 500 characters, written as in the configuration."""
    flat: dict[str, str] = {}
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten_parameters(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[_allowed(name)] = text[:MAX_VALUE_CHARACTERS]
    return flat


def metric_name(key: str) -> str:
    """``key`` as a name that MLflow takes."""
    return normpath(_allowed(key)).lstrip("./") or "unnamed"


def _allowed(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)[:250]


def _open_client(uri: str) -> Any:
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if (database := sqlite_path(uri)) is not None:
        create_database(database)
    return MlflowClient(tracking_uri=uri)


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite address, or ``None`` for any other."""
    match = re.fullmatch(r"sqlite:///([^?]+)(\?.*)?", uri)
    return None if match is None or match[1] == ":memory:" else Path(match[1]).absolute()


def create_database(path: Path) -> None:
    """Make MLflow's SQLite file unless it is there: by one process at a time, and visible only once it is complete."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        unfinished = path.with_name(f"{path.name}.new")
        unfinished.unlink(missing_ok=True)
        with _unsynchronized():
            SqlAlchemyStore(f"sqlite:///{unfinished}", _artifacts(f"sqlite:///{path}")).engine.dispose()
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.rename(unfinished, path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _unsynchronized() -> Iterator[None]:
    """Let SQLite leave out hundreds of fsyncs, seconds on a busy disk, for a file that nobody sees yet."""
    from sqlalchemy import Engine, event

    def leave_out(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", leave_out)
    try:
        yield
    finally:
        event.remove(Engine, "connect", leave_out)


def _artifacts(uri: str) -> str | None:
    """Where artifacts of an SQLite store go: beside it, as MLflow's own choice is the working directory."""
    path = sqlite_path(uri)
    return None if path is None else str(path.parent / "mlartifacts")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
