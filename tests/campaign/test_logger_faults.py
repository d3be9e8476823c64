"""Loggers under fault: a tracking server that is down, slow or wrong, and a disk that is full."""

import re
import resource
import subprocess
from collections import Counter
from contextlib import suppress

import pytest

from runner.checkpoint.store import CheckpointStore
from runner.config.main import main
from runner.loggers import mlflow_process
from runner.loggers.journal import JOURNAL
from runner.loggers.mlflow_database import create_database
from runner.runs import read_run
from tests.campaign.logged_runs import ADDRESS, HEADING, Outcome, measure, values_in
from tests.campaign.tracking import LOG_BATCH, LightServer, Proxy, RealServer, Values
from tests.whole.children import fork
from tests.whole.runs import compose, rows_of

MOST = 1.02
"""Of the time that a run without loggers takes."""


def lost_replies(number: int, path: str, seconds: float) -> str:
    return "lose" if LOG_BATCH in path and number % 3 else "pass"


def down_and_back(number: int, path: str, seconds: float) -> str:
    return "refuse" if seconds % 8 < 5 else "pass"


SCRIPTS = {
    "down": lambda number, path, seconds: "refuse",
    "slow": lambda number, path, seconds: "slow",
    "hanging": lambda number, path, seconds: "hang" if number % 4 == 3 else "pass",
    "errors": lambda number, path, seconds: ("pass", "fail", "pass", "fail after")[number % 4],
    "lost replies": lost_replies,
    "wrong answers": lambda number, path, seconds: ("pass", "garble", "pass", "lie", "pass", "tear")[number % 6],
    "down and back": down_and_back,
}


@pytest.fixture(autouse=True, scope="module")
def no_process_left():
    yield
    mlflow_process.stop_idle()


@pytest.fixture
def light_server():
    server = LightServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    create_database(folder / "fresh.db")
    server = RealServer(folder, folder / "fresh.db")
    yield server
    server.stop()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes, where this user may mount one."""
    disk = tmp_path / "run"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def check_outcome(outcome: Outcome) -> None:
    assert (outcome.missing, outcome.twice, outcome.status) == (0, 0, "FINISHED"), outcome
    assert outcome.rows > 5
    assert outcome.faults > 0
    assert outcome.close_seconds < 12
    assert max(outcome.in_loggers_wall, outcome.in_loggers_cpu) < MOST - 1, outcome


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("lost replies", lost_replies),
        ("down and back", lambda number, path, seconds: "refuse" if number < 3 else "pass"),
    ],
)
def test_every_value_arrives_once_and_training_does_not_wait(tmp_path, light_server, name, script):
    outcome = measure(name, script, light_server, tmp_path, pairs=6, env_steps=2_000)
    check_outcome(outcome)


def test_a_run_that_is_killed_while_answers_get_lost_has_every_value_once(tmp_path, light_server, monkeypatch):
    proxy = Proxy(light_server.port, lost_replies)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    config, folder = (
        compose("logger=[csv,mlflow]", "total_frames=30000", "exploration.env_steps=10000"),
        tmp_path / "run",
    )
    killed = fork(config, folder)
    while not proxy.counts["lose"]:
        assert not killed.has_ended(0.02), killed.output()
    killed.kill()
    resumed = fork(config, folder)
    assert resumed.wait() == 0, resumed.output()
    proxy.stop()
    if (folder / JOURNAL).exists():
        assert main([f"sync={folder}", f"{ADDRESS}{light_server.uri}"]) == 0
    (run_id,) = light_server.runs
    assert untimed(light_server.values_of(run_id)) == untimed(values_in(folder))


def untimed(values: Values) -> Values:
    """Without what the clock said: of a step that is done again after a kill, a server keeps the first time."""
    return Counter((name, step, "" if name.startswith("perf/") else value) for name, step, value in values.elements())


def limit_files(size_bytes: int) -> None:
    """No file of this process can grow beyond that size: writing fails as it does where space is used up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


MANY_ROWS = (
    "total_frames=5000",
    "log_every.env_steps=10",
    "source.capacity=200",
    "source.batch_size=16",
    "network.hidden=[4,4]",
)


def test_a_run_whose_rows_find_no_space_is_saved_ends_in_one_line_and_goes_on_later(tmp_path):
    config, folder = compose(*MANY_ROWS), tmp_path / "run"
    full = fork(config, folder, prepare=lambda: limit_files(40_000))
    assert full.wait() == 1, full.output()
    warning, line = full.output().splitlines()
    assert warning.startswith(f"warning: {folder}/metrics.csv cannot be written (File too large)")
    assert re.fullmatch(
        rf"{folder}/metrics.csv cannot be written: File too large; saved at env step [\d,]+, resume=<folder> goes on",
        line,
    )
    assert read_run(folder)["status"] == "crashed"
    saved = int(re.search(r"env step ([\d,]+)", line)[1].replace(",", ""))
    assert 0 < saved < 5000
    assert CheckpointStore(run=folder).load()[1]["counters"]["env_steps"] == saved
    resumed = fork(config, folder)
    assert resumed.wait() == 0, resumed.output()
    whole = fork(config, tmp_path / "whole")
    assert whole.wait() == 0
    assert rows_of(folder) == rows_of(tmp_path / "whole")
    assert len(rows_of(folder)) == 501


@pytest.mark.slow
@pytest.mark.ci
def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_when_there_is_space(small_disk):
    config = compose(*MANY_ROWS, "total_frames=20000")
    full = fork(config, small_disk)
    while len(saves := list((small_disk / "ckpt").glob("step-*[0-9]/manifest.json"))) < 2:
        assert not full.has_ended(0.02), full.output()
    with open(small_disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    assert full.wait() == 1, (full.output(), saves)
    *warnings, line = full.output().splitlines()
    assert all(words.startswith("warning: ") for words in warnings)
    space = "No space left on device"
    assert re.fullmatch(rf"{small_disk}/metrics.csv cannot be written: {space}; .* goes on( from the last one)?", line)
    (small_disk / "filler").unlink()
    resumed = fork(config, small_disk)
    assert resumed.wait() == 0, resumed.output()
    whole = fork(config, small_disk.with_name("whole"))
    assert whole.wait() == 0
    assert rows_of(small_disk) == rows_of(small_disk.with_name("whole"))


@pytest.mark.slow
def test_loggers_under_fault(tmp_path, real_server):
    print(f"\n{HEADING}")
    outcomes = []
    for name, script in SCRIPTS.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        outcomes.append(measure(name, script, real_server, folder, pairs=60, env_steps=1_000))
        print(outcomes[-1].line(), flush=True)
    for outcome in outcomes:
        check_outcome(outcome)
        assert outcome.cpu - 2 * outcome.noise < MOST, outcome
        assert outcome.wall - 2 * outcome.wall_noise < MOST, outcome
