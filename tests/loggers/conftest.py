import json
import queue
import shutil
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from runner.loggers import mlflow, mlflow_process, mlflow_sender
from runner.loggers.mlflow_database import create_database
from runner.loggers.mlflow_sender import Service


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "fresh.db"
    create_database(path)
    return path


@pytest.fixture
def uri(tmp_path, fresh_database):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "2026-01-02_03-04-05-s7"
    path.mkdir()
    return SimpleNamespace(
        path=path, algo="dqn", env="CartPole-v1", seed=7, config_hash="0123456789abcdef", git_sha="ab" * 20
    )


class SenderThread:
    """What the sending process does, in a thread: a process would import MLflow in each test anew."""

    started: int = 0

    def __init__(self, with_database=False):
        SenderThread.started += 1
        self._inbox, self._outbox = queue.SimpleQueue(), queue.SimpleQueue()
        self.is_alive = self.is_ready = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with suppress(SystemExit):
            Service(self._inbox, self._outbox.put).run()

    def tell(self, message):
        self._inbox.put(json.loads(json.dumps(message)))

    def hear(self, seconds=0.0):
        messages = []
        try:
            while True:
                messages.append(json.loads(json.dumps(self._outbox.get(timeout=0.0 if messages else seconds))))
        except queue.Empty:
            return messages

    def stop(self, at_once=False):
        self.is_alive = False
        self._inbox.put(None)
        if not at_once:
            self._thread.join(10)


@pytest.fixture
def in_thread(monkeypatch):
    """Let loggers send from threads of this process."""
    mlflow_process.stop_idle()
    monkeypatch.setattr(mlflow_process, "SenderProcess", SenderThread)
    monkeypatch.setattr(mlflow_sender, "SEND_SECONDS", 0.0)
    monkeypatch.setattr(mlflow, "CLOSE_SECONDS", 60.0)  # what takes long on a busy machine is not what they are about
    monkeypatch.setattr(mlflow, "PREEMPTED_SECONDS", 60.0)
    yield
    mlflow_process.stop_idle()
