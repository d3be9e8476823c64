"""The real process: it talks to MLflow, ends with its parent, and costs training nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.loggers import mlflow as module
from runner.loggers import mlflow_process
from runner.loggers.mlflow import MLFlowLogger
from tests.loggers.parts import client_of, once, row, steps_of, wait_until, wait_until_sent, warnings_in

ROOT = Path(mlflow_process.__file__).parents[2]
START = """
import os, sys, time
from runner.loggers.mlflow_process import SenderProcess
process = SenderProcess()
print(process._process.pid, flush=True)
"""


@pytest.fixture(autouse=True)
def fresh():
    mlflow_process.stop_idle()
    yield
    mlflow_process.stop_idle()


def is_there(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_one_process_sends_one_run_after_the_other_and_is_replaced_where_it_dies(uri, run, caplog, capfd, monkeypatch):
    monkeypatch.setattr(mlflow_process, "RESTART_SECONDS", 0.0)
    first = MLFlowLogger(run=run, tracking_uri=uri)
    first.log_row(row(1))
    process = first._link._process
    wait_until_sent(first)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are meant for the run
        process._process.send_signal(number)
    assert "libtorch" not in Path(f"/proc/{process._process.pid}/maps").read_text()
    first.log_row(row(2))
    first.close("done")
    assert steps_of(uri, first.run_id) == once(1, 2)
    assert (warnings_in(caplog), capfd.readouterr()) == ([], ("", ""))

    second = MLFlowLogger(run=run, tracking_uri=uri)
    second.log_row(row(3))
    assert second._link._process is process
    wait_until_sent(second)
    process._process.kill()
    for step in range(4, 7):
        second.log_row(row(step))
    wait_until_sent(second)
    second.close("done")
    assert second.run_id != first.run_id
    assert steps_of(uri, second.run_id) == once(3, 4, 5, 6)
    assert ["has ended" in line for line in warnings_in(caplog)] == [True]


@pytest.mark.parametrize("end", ["time.sleep(60)", "os._exit(75)", "sys.exit()", "1 / 0"])
def test_nothing_is_left_of_a_run_that_ends_in_whatever_way(end):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START + end]
    training = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    sender = int(training.stdout.readline())
    if "sleep" in end:
        assert is_there(sender)
        training.kill()
    training.wait()
    training.stdout.close()
    wait_until(lambda: not is_there(sender), seconds=10)


def test_a_process_started_early_is_the_one_that_the_run_takes(uri, run):
    mlflow_process.warm_up({"csv": {"_target_": "runner.loggers.csv.CSVLogger"}})
    assert mlflow_process._idle == []
    mlflow_process.warm_up({"mlflow": {"_target_": mlflow_process.LOGGER, "tracking_uri": uri}})
    ((_, process),) = mlflow_process._idle
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_row(row(1))
    assert logger._link._process is process
    process.stop(at_once=True)


def test_a_stopped_process_holds_nothing_up(uri, run, monkeypatch):
    monkeypatch.setattr(module, "PREEMPTED_SECONDS", 0.2)
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_row(row(0))
    os.kill(logger._link._process._process.pid, signal.SIGSTOP)
    slowest = 0.0
    for step in range(1, 10_000):  # its pipe is full by then
        begin = time.thread_time()
        logger.log_row(row(step))
        logger._link.nudge()
        slowest = max(slowest, time.thread_time() - begin)
    assert slowest < 0.1
    begin = time.monotonic()
    logger.close("preempted")
    assert time.monotonic() - begin < 5
    assert logger.unsent.startswith("10000 rows of metrics are not in MLflow yet")


FOUR = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from runner.loggers.mlflow import MLFlowLogger
gate = os.pipe()
for seed in range(4):
    if os.fork() == 0:
        os.close(gate[1])
        os.read(gate[0], 1)  # until the parent lets all of them go at once
        path = Path(f"run-{seed}").absolute()
        path.mkdir()
        run = SimpleNamespace(path=path, algo="dqn", env="CartPole-v1", seed=seed, config_hash="0", git_sha=None)
        logger = MLFlowLogger(run=run)
        logger.log_row({"frames": seed, "x": 1.0})
        logger.close("done")
        os._exit(0 if logger.run_id and not logger.unsent else 1)
os.close(gate[1])
sys.exit(any(os.wait()[1] for _ in range(4)))
"""


@pytest.mark.slow
@pytest.mark.ci
def test_four_processes_may_start_at_once_on_a_fresh_file(tmp_path, monkeypatch):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FOUR], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    client = client_of(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("dqn-CartPole-v1")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["hookline.seed"] for run in runs) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(os.listdir(tmp_path)) == ["outputs", "run-0", "run-1", "run-2", "run-3"]
