"""Where MLflow is, and the SQLite file that it is by default."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def address(tracking_uri: str | None) -> str:
    """Where MLflow is: as given, else as ``MLFLOW_TRACKING_URI`` says, else SQLite at ``outputs/mlflow.db``."""
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default_address()


def default_address() -> str:
    """SQLite at ``outputs/mlflow.db``, where nothing says otherwise."""
    return f"sqlite:///{Path('outputs/mlflow.db').absolute()}"


def without_password(uri: str) -> str:
    """The address as it may be shown, and written down."""
    return re.sub(r"(//[^/:@]*):[^/@]*@", r"\1@", uri)


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
            SqlAlchemyStore(f"sqlite:///{unfinished}", artifacts_of(f"sqlite:///{path}")).engine.dispose()
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


def artifacts_of(uri: str) -> str | None:
    """Where artifacts of an SQLite store go: beside it, as MLflow's own choice is the working directory."""
    path = sqlite_path(uri)
    return None if path is None else str(path.parent / "mlartifacts")
