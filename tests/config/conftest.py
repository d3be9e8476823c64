"""Calls the command line as a user would, in an empty folder."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from runner.config.check import CONF
from runner.config.main import main

ROOT = CONF.parent


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def mistakes(self) -> list[str]:
        lines = self.err.splitlines()
        return lines[:-1] if lines and lines[-1].endswith("nothing was started") else []


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """``ask(*argv)`` calls ``main`` from an empty folder, which ``ask.folder`` names."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*argv: str, conf: Path = CONF) -> Answer:
        capsys.readouterr()
        code = main(argv, conf)
        return Answer(code, *capsys.readouterr())

    call.folder = folder
    return call


@pytest.fixture
def conf(tmp_path):
    """A copy of our configurations, without the tuned ones, that a test may add to."""
    copied = Path(shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("tuned")))
    (copied / "tuned" / "dqn").mkdir(parents=True)
    return copied
