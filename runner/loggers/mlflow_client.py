"""What is said to MLflow, and how: one run, its parameters, and batches of metrics that arrive once."""

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any

from runner.loggers.arrived import Arrived
from runner.loggers.journal import Row
from runner.text import legible

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
MARK = "hookline.id"
FOLDER = "hookline.folder"
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


@dataclass(frozen=True)
class Target:
    """Where a run is to appear, and what is known about it from the start."""

    uri: str
    experiment: str
    run_name: str
    tags: dict[str, str] = field(default_factory=dict)


class Connection:
    """An MLflow run that rows are sent to, each of their values once, whatever became of earlier tries.

    Args:
        run_id: the run to go on with; ``None``, or a run that the server does not have: a new one.
        may_exist: whether the run may have been made, or parts of it sent, before.
        timestamps: of all rows that are, or will be, sent here.
    """

    def __init__(
        self, target: Target, run_id: str | None, may_exist: bool, timestamps: Callable[[], set[int]] = set
    ) -> None:
        self._client = open_client(target.uri)
        run = self._find(target, run_id) if may_exist else None
        is_new = run is None
        run = run or self._create(target)
        if not is_run_id(run.info.run_id):
            raise ValueError(f"the server names a run {run.info.run_id!r:.60}, which is no id of a run")
        self.run_id: str = run.info.run_id
        self._parameters: dict[str, str] = dict(run.data.params)
        self._arrived = Arrived(lambda name: self._client.get_metric_history(self.run_id, name), timestamps)
        if not is_new:
            self._client.update_run(self.run_id, status="RUNNING")
            self._arrived.doubt(run.data.metrics)

    def send_parameters(self, flat: Mapping[str, str]) -> None:
        """Parameters cannot change in MLflow; what a resumed run overrides becomes a tag beside them."""
        from mlflow.entities import Param, RunTag

        new = [Param(key, value) for key, value in flat.items() if key not in self._parameters]
        changed = {key: value for key, value in flat.items() if self._parameters.get(key, value) != value}
        tags = [RunTag(f"hookline.override.{key}"[:250], value) for key, value in changed.items()]
        for begin in range(0, len(new), MAX_PARAMETERS):
            self._client.log_batch(self.run_id, params=new[begin : begin + MAX_PARAMETERS])
        for begin in range(0, len(tags), MAX_PARAMETERS):
            self._client.log_batch(self.run_id, tags=tags[begin : begin + MAX_PARAMETERS])
        self._parameters |= flat

    def send(self, rows: Sequence[Row]) -> None:
        """Send the values that the server does not have; after an error it is asked what it has before any goes again.

        MLflow takes the same value twice, and an answer that never came does not say whether the values did.
        """
        from mlflow.entities import Metric

        named = [(row, metric_name(key), value) for row in rows for key, value in row.values.items()]
        metrics = [
            Metric(name, value, row.timestamp_ms, row.step)
            for row, name, value in named
            if not self._arrived.has(name, row)
        ]
        try:
            for begin in range(0, len(metrics), MAX_METRICS):
                self._send_batch(metrics[begin : begin + MAX_METRICS])
        except BaseException:
            self._arrived.doubt({name for _, name, _ in named})
            raise

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
                logger.warning("MLflow refuses %s = %r: %s", metrics[0].key, metrics[0].value, first_line(error))
                return
            middle = len(metrics) // 2
            self._send_batch(metrics[:middle])
            self._send_batch(metrics[middle:])

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
        # Killed after the run was made, or before its id arrived: a tag tells it from all others.
        experiment = self._client.get_experiment_by_name(target.experiment)
        tag = MARK if MARK in target.tags else FOLDER
        value = target.tags.get(tag, "").replace("'", "")
        found = experiment and self._client.search_runs(
            [experiment.experiment_id], f"tags.`{tag}` = '{value}'", max_results=1
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


def is_run_id(text: Any) -> bool:
    """Whether this can be MLflow's id of a run."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{32}", text) is not None


def metric_name(key: str) -> str:
    """``key`` as a name that MLflow takes."""
    return normpath(_allowed(key)).lstrip("./") or "unnamed"


def _allowed(name: str) -> str:
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)[:250]


def prepare(with_database: bool = False) -> None:
    """Import MLflow, which takes a second, and a second more with what a database needs."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    if with_database:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def open_client(uri: str) -> Any:
    """MLflow's client of that address; an SQLite file is made where there is none."""
    prepare()
    from mlflow import MlflowClient

    if (database := sqlite_path(uri)) is not None:
        create_database(database)
    return MlflowClient(tracking_uri=uri)


def address(tracking_uri: str | None) -> str:
    """Where MLflow is: as given, else as ``MLFLOW_TRACKING_URI`` says, else SQLite at ``outputs/mlflow.db``."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('outputs/mlflow.db').absolute()}"


def needs_database(uri: str) -> bool:
    """Whether MLflow opens a database at this address itself."""
    return "://" in uri and not uri.startswith(("http:", "https:", "file:"))


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


def first_line(error: BaseException) -> str:
    """The error's message, in one line of at most 200 characters."""
    return legible((str(error).splitlines() or [type(error).__name__])[0], most=200)
