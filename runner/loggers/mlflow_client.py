"""What is said to MLflow, and how: one run, its parameters, and batches of metrics that arrive once."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any

from runner.loggers.arrived import Arrived
from runner.loggers.files import open_regular
from runner.loggers.journal import Row
from runner.loggers.mlflow_database import artifacts_of, create_database, sqlite_path
from runner.loggers.mlflow_files import Artifacts
from runner.text import legible

logger = logging.getLogger(__name__)

MAX_METRICS = 1000
MAX_PARAMETERS = 100
MAX_VALUE_CHARACTERS = 500
MAX_REFUSALS = 20
MAX_RECORD_BYTES = 2**20
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # MLflow's own retries take minutes; ours know when the run ends.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # a server's answer does not choose another one
}
MARK = "hookline.id"
FOLDER = "hookline.folder"
GONE = "RESOURCE_DOES_NOT_EXIST"
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
        self._target, self._experiment, self._may_have_twins = target, run.info.experiment_id, may_exist
        self._parameters: dict[str, str] = dict(run.data.params)
        self._names: set[str] = set()
        self._witnesses: dict[str, set[int]] = {}
        self._arrived = Arrived(lambda name: self._client.get_metric_history(self.run_id, name), timestamps)
        if not is_new:
            self._client.update_run(self.run_id, status="RUNNING")
            self._note_place(run.data.tags)
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

    def send_artifacts(self, artifacts: Artifacts) -> None:
        artifacts.send(self._client, self.run_id)

    def send(self, rows: Sequence[Row]) -> None:
        """Send the values that the server does not have; after an error it is asked what it has before any goes again.

        MLflow takes the same value twice, and an answer that never came does not say whether the values did.
        """
        names = {metric_name(key) for row in rows for key in row.values}
        self._names |= names
        try:
            for batch in _batches(self._new_values(row) for row in rows):
                self._send_batch(batch)
        except BaseException:
            self._arrived.doubt(names)
            raise

    def lacks_values(self) -> bool:
        """Whether the server does not have what it said it took: asked about one value of each batch."""
        for name, timestamps in self._witnesses.items():
            history = self._client.get_metric_history(self.run_id, name)
            if timestamps - {int(value.timestamp) for value in history}:
                self._arrived.doubt(self._names)
                return True
        return False

    def finish(self, status: str) -> None:
        """Set the run's status, and leave it the only one of its kind."""
        if self._may_have_twins:
            self._remove_empty_twins()
        self._client.set_terminated(self.run_id, status)

    def _new_values(self, row: Row) -> list[Any]:
        from mlflow.entities import Metric

        named = [(metric_name(key), value) for key, value in row.values.items()]
        new = [(name, value) for name, value in named if not self._arrived.has(name, row)]
        return [Metric(name, value, row.timestamp_ms, row.step) for name, value in new]

    def _send_batch(self, batch: list[Any]) -> None:
        """One bad value must not hold up all others for ever: a batch that is refused is halved until it stands alone.

        Where nothing is taken at all, it is the server that is wrong.
        """
        refused: list[tuple[Any, Exception]] = []
        taken: list[Any] = []
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            error = self._refusal_of(part)
            if error is None:
                taken += part
            elif len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
            else:
                refused.append((part[0], error))
                if not taken and (len(refused) > MAX_REFUSALS or not waiting):
                    raise error
        for metric, _ in refused:  # asked once more: a server that was wrong for a while may have come round meanwhile
            if error := self._refusal_of([metric]):
                logger.warning("MLflow refuses %s = %r: %s", metric.key, metric.value, first_line(error))
        self._witnesses.setdefault(taken[-1].key, set()).add(taken[-1].timestamp)

    def _refusal_of(self, metrics: list[Any]) -> Exception | None:
        """Send them; returns why the server does not want them, and raises where it fails."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self.run_id, metrics=metrics)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            return error
        return None

    def _find(self, target: Target, run_id: str | None) -> Any:
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                run = self._client.get_run(run_id)
                if run.info.lifecycle_stage == "active" and _is_of(target, run):
                    return run
            except MlflowException as error:
                if error.error_code != GONE:
                    raise
        # Killed after the run was made, before its id was written down, or before it arrived: a tag tells which it is.
        experiment = self._client.get_experiment_by_name(target.experiment)
        found = self._twins(target, experiment.experiment_id) if experiment else []
        if not found and run_id is not None:
            words = "MLflow at %s has no run %s that was made for this folder; its metrics go to a new one"
            logger.warning(words, target.uri, run_id)
        return max(found, key=lambda run: len(run.data.metrics), default=None)

    def _twins(self, target: Target, experiment_id: str) -> list[Any]:
        """The runs that were made for ours: several, where the server made one and then denied it."""
        tag = MARK if MARK in target.tags else FOLDER
        value = target.tags.get(tag, "").replace("'", "")
        found = self._client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=100)
        return [run for run in found if _is_of(target, run)]

    def _remove_empty_twins(self) -> None:
        for run in self._twins(self._target, self._experiment):
            if run.info.run_id != self.run_id and not run.data.metrics:
                self._client.delete_run(run.info.run_id)

    def _note_place(self, tags: Mapping[str, str]) -> None:
        """Let the server know where a folder is that was moved, so that a copy of it can be told from it."""
        place = self._target.tags.get(FOLDER)
        if place is not None and tags.get(FOLDER) != place:
            self._client.set_tag(self.run_id, FOLDER, place)

    def _create(self, target: Target) -> Any:
        experiment_id = self._experiment_id(target)
        return self._client.create_run(experiment_id, tags=target.tags, run_name=target.run_name)

    def _experiment_id(self, target: Target) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(target.experiment)
        if experiment is None:
            try:
                return self._client.create_experiment(target.experiment, artifact_location=artifacts_of(target.uri))
            except MlflowException:  # another run of the same sweep was faster
                experiment = self._client.get_experiment_by_name(target.experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id


def _is_of(target: Target, run: Any) -> bool:
    """Whether a server's run was made for the folder that we speak for: what that says of itself does not suffice.

    The id decides, which stays the same when a folder is moved. A copy has it too: it is told by the first one, which
    is still where the server's run says that it is.
    """
    tags, mark = run.data.tags, target.tags.get(MARK)
    if tags.get(FOLDER) == target.tags.get(FOLDER):
        return bool(tags.get(MARK) == mark)
    return mark is not None and tags.get(MARK) == mark and _id_in(tags.get(FOLDER, "")) != mark


def _id_in(folder: str) -> Any:
    """The id of the run in a folder, if there is one."""
    try:
        with open(open_regular(Path(folder) / "run.json", os.O_RDONLY), "rb") as file:
            record = json.loads(file.read(MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return record.get("id") if isinstance(record, dict) else None


def _batches(rows: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Values of whole rows together, as many as MLflow takes at once."""
    batch: list[Any] = []
    for values in rows:
        if batch and len(batch) + len(values) > MAX_METRICS:
            yield batch
            batch = []
        batch = [*batch, *values]
        while len(batch) > MAX_METRICS:
            yield batch[:MAX_METRICS]
            batch = batch[MAX_METRICS:]
    if batch:
        yield batch


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


def first_line(error: BaseException) -> str:
    """What went wrong, in one line of at most 200 characters: what the system says where that is the cause of it.

    MLflow wraps it in a line so long that what matters, such as a refused connection, stands beyond its end.
    """
    words, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError) and not type(cause).__module__.startswith(("requests", "urllib3")):
            words = cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return legible((words.splitlines() or [type(error).__name__])[0], most=200)
