import shutil
from types import SimpleNamespace

import pytest

from runner.loggers.mlflow_client import create_database


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
