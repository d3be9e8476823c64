import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from runner.loggers import mlflow as module
from runner.loggers import outbox
from runner.loggers.mlflow import MLFlowLogger, look_command
from runner.loggers.mlflow_client import flatten_parameters, metric_name, sqlite_path
from runner.loggers.outbox import Outbox, Row, Spool


def row(step, **metrics):
    return {"env_steps": step, "frames": 2 * step, "updates": 0, "episodes": 0, "train/return": step / 4, **metrics}


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def steps_of(uri, run_id, key="train/return"):
    """How often the server has each step of a metric."""
    return Counter(metric.step for metric in client_of(uri).get_metric_history(run_id, key))


def once(*env_steps):
    return Counter({2 * step: 1 for step in env_steps})


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def wait_until_sent(logger):
    logger.flush()
    deadline = time.monotonic() + 30
    while logger.state_dict()["unsent"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert logger.state_dict()["unsent"] == []


def test_a_run_appears_with_its_name_tags_parameters_metrics_and_status(uri, run, caplog):
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.log_hparams({"seed": 7, "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]}, "none": None, "long": "x" * 900})
    logger.log_row(row(10, **{"loss/q": 0.1}))
    logger.log_row(row(20, **{"eval/return, mean": 5.0}))
    logger.close("done")
    client = client_of(uri)
    found = client.get_run(logger.run_id)
    assert client.get_experiment(found.info.experiment_id).name == "dqn-CartPole-v1"
    assert (found.info.run_name, found.info.status) == (run.path.name, "FINISHED")
    assert found.data.params == {
        "seed": "7",
        "optimizer.lr": "0.001",
        "optimizer.betas": "[0.9, 0.999]",
        "none": "null",
        "long": "x" * 500,
    }
    tags = {key: value for key, value in found.data.tags.items() if key.startswith("hookline.")}
    assert tags == {
        "hookline.algo": "dqn",
        "hookline.env": "CartPole-v1",
        "hookline.seed": "7",
        "hookline.config_hash": "0123456789abcdef",
        "hookline.git_sha": "ab" * 20,
        "hookline.host": socket.gethostname(),
        "hookline.folder": str(run.path),
    }
    assert found.data.metrics == {"train/return": 5.0, "loss/q": 0.1, "eval/return_ mean": 5.0}
    assert steps_of(uri, logger.run_id) == once(10, 20)
    assert warnings_in(caplog) == []
    assert os.listdir(run.path) == []


@pytest.mark.parametrize(("status", "shown"), [("crashed", "FAILED"), ("preempted", "KILLED")])
def test_the_status_at_the_end_is_shown(uri, run, status, shown):
    logger = MLFlowLogger(run, tracking_uri=uri, experiment="mine")
    logger.log_hparams({})
    logger.close(status)
    found = client_of(uri).get_run(logger.run_id)
    assert found.info.status == shown
    assert client_of(uri).get_experiment(found.info.experiment_id).name == "mine"


def test_nan_stays_and_infinity_becomes_what_mlflow_makes_of_it(uri, run):
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.log_row(row(1, a=float("nan"), b=float("inf"), c=float("-inf")))
    logger.close("done")
    metrics = client_of(uri).get_run(logger.run_id).data.metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"]) == (sys.float_info.max, -sys.float_info.max)


def test_many_rows_and_parameters_go_in_batches_that_mlflow_takes(uri, run):
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.log_hparams({f"key{index}": index for index in range(250)})
    for step in range(150):
        logger.log_row(row(step, **{f"m/{index}": 1.0 for index in range(9)}))
    logger.close("done")
    assert len(client_of(uri).get_run(logger.run_id).data.params) == 250
    assert steps_of(uri, logger.run_id, "m/8") == once(*range(150))


@pytest.mark.parametrize("state_is_taken", ["before anything is sent", "after"])
def test_after_a_kill_every_value_is_there_once(uri, run, state_is_taken):
    killed = MLFlowLogger(run, tracking_uri=uri)
    killed.log_hparams({"lr": 1e-3})
    for step in range(1, 7):
        killed.log_row(row(step))
    if state_is_taken == "after":
        wait_until_sent(killed)
    state = json.loads(json.dumps(killed.state_dict()))
    assert len(state["unsent"]) == (0 if state_is_taken == "after" else 6)
    for step in range(7, 11):
        killed.log_row(row(step))
    wait_until_sent(killed)  # and is never closed

    resumed = MLFlowLogger(run, tracking_uri=uri)
    state["run_id"] = killed.run_id
    resumed.load_state_dict(state)
    resumed.log_hparams({"lr": 5e-4, "new": 1})
    for step in range(7, 13):
        resumed.log_row(row(step))
    wait_until_sent(resumed)
    assert client_of(uri).get_run(killed.run_id).info.status == "RUNNING"
    resumed.close("done")
    assert resumed.run_id == killed.run_id
    found = client_of(uri).get_run(killed.run_id)
    assert steps_of(uri, killed.run_id) == once(*range(1, 13))
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.001", "new": "1"}
    assert found.data.tags["hookline.override.lr"] == "0.0005"


def test_a_resumed_run_is_running_again(uri, run):
    first = MLFlowLogger(run, tracking_uri=uri)
    first.log_row(row(1))
    state = first.state_dict()
    first.close("preempted")
    resumed = MLFlowLogger(run, tracking_uri=uri)
    resumed.load_state_dict(state | {"run_id": first.run_id})
    resumed.log_row(row(2))
    wait_until_sent(resumed)
    assert client_of(uri).get_run(first.run_id).info.status == "RUNNING"
    resumed.close("done")
    assert client_of(uri).get_run(first.run_id).info.status == "FINISHED"


def test_rows_that_were_in_flight_at_the_kill_are_sent_by_the_resumed_run(uri, run):
    first = MLFlowLogger(run, tracking_uri=uri)
    first.log_row(row(1))
    wait_until_sent(first)
    state = {
        "run_id": first.run_id,
        "rows": 3,
        "unsent": [(1, 4, 1000, {"train/return": 0.5}), (2, 6, 1001, {"x": 1.0})],
    }
    resumed = MLFlowLogger(run, tracking_uri=uri)
    resumed.load_state_dict(state)
    resumed.close("done")
    assert steps_of(uri, first.run_id) == once(1, 2)
    assert steps_of(uri, first.run_id, "x") == once(3)


def test_a_run_killed_before_its_id_was_saved_is_found_by_its_folder(uri, run):
    killed = MLFlowLogger(run, tracking_uri=uri)
    killed.log_row(row(1))
    wait_until_sent(killed)
    resumed = MLFlowLogger(run, tracking_uri=uri)
    resumed.load_state_dict({})
    resumed.log_row(row(1))
    resumed.log_row(row(2))
    resumed.close("done")
    assert resumed.run_id == killed.run_id
    assert steps_of(uri, killed.run_id) == once(1, 2)


def test_the_id_in_the_runs_own_file_serves_where_no_state_was_saved(uri, run):
    killed = MLFlowLogger(run, tracking_uri=uri)
    killed.log_row(row(1))
    wait_until_sent(killed)
    run.mlflow_run_id = killed.run_id
    resumed = MLFlowLogger(run, tracking_uri=uri)
    resumed.load_state_dict({})
    assert resumed.run_id == killed.run_id


def test_a_run_that_the_server_no_longer_has_becomes_a_new_one(uri, run, caplog):
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.load_state_dict({"run_id": "0" * 32, "rows": 0, "unsent": []})
    logger.log_row(row(1))
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(1)
    assert ["has no run" in line for line in warnings_in(caplog)] == [True]


def test_a_forged_run_id_is_not_used(uri, run):
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.load_state_dict({"run_id": "../../x", "rows": 0, "unsent": []})
    assert logger.run_id is None


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_a_server_the_run_goes_on_and_the_next_start_sends_its_rows(uri, run, caplog, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.5)
    alone = MLFlowLogger(run, tracking_uri=f"http://127.0.0.1:{closed_port()}")
    alone.log_hparams({"lr": 1e-3})
    for step in range(1, 6):
        alone.log_row(row(step, x=float("nan")))
    state = alone.state_dict()
    begin = time.monotonic()
    while not warnings_in(caplog) and time.monotonic() < begin + 20:
        time.sleep(0.05)
    alone.log_row(row(6))  # after the checkpoint: the resumed run logs it again
    begin = time.monotonic()
    alone.close("preempted")
    assert time.monotonic() - begin < 3
    trouble, unsent = warnings_in(caplog)
    assert "training goes on" in trouble
    assert "\n" not in trouble
    assert "6 rows of metrics are not in MLflow" in unsent
    assert len((run.path / "mlflow-unsent.jsonl").read_text().splitlines()) == 6

    monkeypatch.setattr(module, "CLOSE_SECONDS", 30)
    resumed = MLFlowLogger(run, tracking_uri=uri)
    resumed.load_state_dict(state)
    resumed.log_row(row(6))
    resumed.log_row(row(7))
    resumed.close("done")
    assert steps_of(uri, resumed.run_id) == once(*range(1, 8))
    assert steps_of(uri, resumed.run_id, "x") == once(*range(1, 6))
    assert not (run.path / "mlflow-unsent.jsonl").exists()


def test_rows_left_by_another_start_of_the_folder_are_not_mixed_in(uri, run):
    (run.path / "mlflow-unsent.jsonl").write_text('[0, 2, 1000, {"train/return": 9.0}]\n')
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.log_row(row(5))
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(5)


def test_a_damaged_spool_gives_what_it_can(uri, run, caplog):
    good = '[0, 2, 1000, {"train/return": 9.0}]\n'
    (run.path / "mlflow-unsent.jsonl").write_text(
        good + '[1, 2\n{"a": 1}\n[1, 4, 1, {"train/return": "x"}]\n' + "[" * 10**5
    )
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.load_state_dict({"run_id": None, "rows": 2, "unsent": []})
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(1)
    assert "not a row of metrics" in caplog.text


class Hanging(BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(30)


def test_a_server_that_never_answers_costs_the_training_thread_nothing(run, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hanging)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.2)
    logger = MLFlowLogger(run, tracking_uri=f"http://127.0.0.1:{server.server_port}")
    begin = time.perf_counter()
    for step in range(2000):
        logger.log_row(row(step))
    logger.flush()
    state = logger.state_dict()
    assert time.perf_counter() - begin < 1
    assert len(state["unsent"]) == 2000
    logger.close("preempted")
    assert time.perf_counter() - begin < 3
    assert len((run.path / "mlflow-unsent.jsonl").read_text().splitlines()) == 2000


def test_memory_stays_bounded_while_the_server_is_away(run, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_PENDING_ROWS", 10)
    box = Outbox(Spool(run.path / "spool"))
    for step in range(25):
        box.add(row(step))
    box.spill()
    assert [kept[0] for kept in box.state_dict()["unsent"]] == [20, 21, 22, 23, 24]
    assert [spooled.number for spooled in box.spool.read()] == list(range(20))


def test_a_row_both_in_the_state_and_in_the_file_waits_once(run):
    spool = Spool(run.path / "spool")
    rows = [(number, 10, 1000 + number, {"x": 1.0}) for number in range(4)]
    spool.append([Row(*rows[0]), Row(*rows[1]), Row(*rows[3])])
    box = Outbox(spool)
    box.load_state_dict({"rows": 3, "unsent": rows[:3]})
    assert [spooled.number for spooled in spool.read()] == [0, 1]
    assert [waiting[0] for waiting in box.state_dict()["unsent"]] == [2]
    box.add(row(9))
    assert [waiting.number for waiting in box.peek(9)] == [2, 3]


def test_one_value_that_is_refused_does_not_hold_up_the_others(uri, run, caplog):
    logger = MLFlowLogger(run, tracking_uri=uri)
    logger.log_row(row(1))
    logger._outbox._pending[0] = logger._outbox._pending[0]._replace(values={"a": 1.0, "b": None, "c": 3.0})
    logger.close("done")
    assert client_of(uri).get_run(logger.run_id).data.metrics == {"a": 1.0, "c": 3.0}
    assert ["MLflow refuses b = None" in line for line in warnings_in(caplog)] == [True]


def test_a_row_costs_the_training_thread_little(uri, run):
    logger = MLFlowLogger(run, tracking_uri=uri)
    values = row(1, **{f"metric/{index}": float(index) for index in range(20)})
    logger.log_row(values)
    wait_until_sent(logger)  # MLflow is imported by then
    seconds = []
    for _ in range(500):
        begin = time.perf_counter()
        logger.log_row(values)
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[250] < 20e-6


def test_nothing_is_sent_and_no_thread_is_started_before_something_is_logged(run, tmp_path):
    logger = MLFlowLogger(run, tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
    threads = threading.active_count()
    logger.flush()
    logger.close("done")
    assert threading.active_count() == threads
    assert not (tmp_path / "none.db").exists()


FOUR = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from runner.loggers.mlflow import MLFlowLogger
gate = os.pipe()
for seed in range(4):
    if os.fork() == 0:
        os.close(gate[1])
        os.read(gate[0], 1)  # until the parent lets all of them go at once
        path = Path(f"run-{seed}").absolute()
        path.mkdir()
        run = SimpleNamespace(path=path, algo="dqn", env="CartPole-v1", seed=seed, config_hash="0", git_sha=None)
        logger = MLFlowLogger(run)
        logger.log_row({"frames": seed, "x": 1.0})
        logger.close("done")
        os._exit(0 if logger.run_id else 1)
os.close(gate[1])
sys.exit(any(os.wait()[1] for _ in range(4)))
"""


@pytest.mark.slow
@pytest.mark.ci
def test_four_processes_may_start_at_once_on_a_fresh_file(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
    environment |= {"PYTHONPATH": str(Path(module.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FOUR], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    client = client_of(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("dqn-CartPole-v1")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["hookline.seed"] for run in runs) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(os.listdir(tmp_path)) == ["outputs", "run-0", "run-1", "run-2", "run-3"]


class Server:
    """A real ``mlflow server`` on a port of its own."""

    def __init__(self, folder):
        self.port = closed_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder

    def __enter__(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = open(self.folder / "server.log", "a")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text())

    def __exit__(self, *error):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
@pytest.mark.ci
def test_a_server_that_goes_away_and_comes_back_has_every_value_once(tmp_path, run, fresh_database, caplog):
    (tmp_path / "server.db").write_bytes(fresh_database.read_bytes())
    server = Server(tmp_path)
    with server:
        logger = MLFlowLogger(run, tracking_uri=server.uri)
        logger.log_hparams({"lr": 1e-3})
        logger.log_row(row(1, a=float("nan"), b=float("inf")))
        wait_until_sent(logger)
        assert client_of(server.uri).get_run(logger.run_id).info.status == "RUNNING"
    logger.log_row(row(2))
    logger.flush()
    deadline = time.monotonic() + 30
    while not warnings_in(caplog) and time.monotonic() < deadline:
        time.sleep(0.05)
    logger.log_row(row(3))
    with server:
        wait_until_sent(logger)
        logger.log_row(row(4))
        state = logger.state_dict()
        logger.close("preempted")
        resumed = MLFlowLogger(run, tracking_uri=server.uri)
        resumed.load_state_dict(state)
        resumed.log_row(row(5))
        resumed.close("done")
        found = client_of(server.uri).get_run(logger.run_id)
        assert steps_of(server.uri, logger.run_id) == once(1, 2, 3, 4, 5)
        assert (found.info.status, found.data.params) == ("FINISHED", {"lr": "0.001"})
        assert math.isnan(found.data.metrics["a"])
        assert found.data.metrics["b"] == sys.float_info.max
    assert len(warnings_in(caplog)) == 1


def test_the_address_is_the_argument_or_the_environment_or_the_default(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert MLFlowLogger(run).uri == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert MLFlowLogger(run).uri == "http://127.0.0.1:1"
    assert MLFlowLogger(run, tracking_uri="sqlite:///x.db").uri == "sqlite:///x.db"


def test_the_line_to_paste_names_the_whole_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.loggers.mlflow.shutil.which", lambda name: f"/usr/bin/{name}")
    assert look_command("sqlite:///a b.db") == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/a b.db'"
    assert look_command("sqlite:////x/mlflow.db") == "mlflow ui --backend-store-uri sqlite:////x/mlflow.db"


def test_the_line_to_paste_works_where_the_venv_was_not_activated(monkeypatch):
    monkeypatch.setattr("runner.loggers.mlflow.shutil.which", lambda name: None)
    command = look_command("sqlite:////x/mlflow.db").split()[0]
    assert Path(command).parent == Path(sys.executable).parent


def test_a_server_is_looked_at_by_its_address():
    assert look_command("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_addresses_of_files_are_told_from_others():
    assert sqlite_path("sqlite:////x/y.db?mode=rw") == Path("/x/y.db")
    assert sqlite_path("http://127.0.0.1:5000") is None
    assert sqlite_path("sqlite:///:memory:") is None


def test_names_are_made_acceptable():
    assert metric_name("eval/return, mean") == "eval/return_ mean"
    assert metric_name("/a//b/../c") == "a/c"
    assert flatten_parameters({"a": {"b": [1, None], "c": {}}, "d": "text", "e/f": True}) == {
        "a.b": "[1, null]",
        "a.c": "{}",
        "d": "text",
        "e/f": "true",
    }
