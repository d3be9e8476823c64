import json
import math
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from runner.loggers import mlflow_process
from runner.loggers.journal import JOURNAL
from runner.loggers.mlflow import MLFlowLogger, look_command
from runner.loggers.mlflow_client import flatten_parameters, metric_name
from runner.loggers.mlflow_database import sqlite_path
from tests.loggers.parts import (
    client_of,
    closed_port,
    kill,
    once,
    row,
    steps_of,
    wait_until,
    wait_until_sent,
    warnings_in,
)

pytestmark = pytest.mark.usefixtures("in_thread")


def saved(logger):
    """The logger's state as a checkpoint gives it back."""
    state = logger.state_dict()
    state.pop("push").work()
    return json.loads(json.dumps(state))


@pytest.mark.pins("MLFlowLogger")
def test_a_run_appears_with_its_name_tags_parameters_metrics_and_status(uri, run, caplog):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
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
    assert (warnings_in(caplog), logger.unsent) == ([], None)
    assert os.listdir(run.path) == []


@pytest.mark.parametrize(("status", "shown"), [("crashed", "FAILED"), ("preempted", "KILLED")])
def test_the_status_at_the_end_is_shown(uri, run, status, shown):
    logger = MLFlowLogger(run=run, tracking_uri=uri, experiment="mine")
    logger.log_hparams({})
    logger.close(status)
    logger.close("done")  # whoever closes again changes nothing
    found = client_of(uri).get_run(logger.run_id)
    assert found.info.status == shown
    assert client_of(uri).get_experiment(found.info.experiment_id).name == "mine"


def test_nan_stays_and_infinity_becomes_what_mlflow_makes_of_it(uri, run):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_row(row(1, a=float("nan"), b=float("inf"), c=float("-inf")))
    logger.close("done")
    metrics = client_of(uri).get_run(logger.run_id).data.metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"]) == (sys.float_info.max, -sys.float_info.max)


def test_many_rows_and_parameters_go_in_batches_that_mlflow_takes(uri, run):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_hparams({f"key{index}": index for index in range(250)})
    for step in range(150):
        logger.log_row(row(step, **{f"m/{index}": 1.0 for index in range(9)}))
    logger.close("done")
    assert len(client_of(uri).get_run(logger.run_id).data.params) == 250
    assert steps_of(uri, logger.run_id, "m/8") == once(*range(150))


@pytest.mark.parametrize("state_is_taken", ["before anything is sent", "after"])
def test_after_a_kill_every_value_is_there_once(uri, run, state_is_taken):
    killed = MLFlowLogger(run=run, tracking_uri=uri)
    killed.log_hparams({"lr": 1e-3})
    for step in range(1, 7):
        killed.log_row(row(step))
    if state_is_taken == "after":
        wait_until_sent(killed)
    state = saved(killed)
    for step in range(7, 11):
        killed.log_row(row(step))
    kill(killed)  # and is never closed

    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict(state | {"run_id": killed.run_id})
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
    assert os.listdir(run.path) == []


def preempted_and_resumed(uri, run):
    """The logger of a run that was preempted after its first row, and the one that goes on with it."""
    first = MLFlowLogger(run=run, tracking_uri=uri)
    first.log_row(row(1))
    state = saved(first)
    first.close("preempted")
    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict(state | {"run_id": first.run_id})
    return first, resumed


def test_a_resumed_run_is_running_again(uri, run):
    first, resumed = preempted_and_resumed(uri, run)
    resumed.log_row(row(2))
    wait_until_sent(resumed)
    assert client_of(uri).get_run(first.run_id).info.status == "RUNNING"
    resumed.close("done")
    assert client_of(uri).get_run(first.run_id).info.status == "FINISHED"
    assert steps_of(uri, first.run_id) == once(1, 2)


def test_rows_that_were_in_flight_at_the_kill_are_sent_by_the_resumed_run(uri, run):
    first = MLFlowLogger(run=run, tracking_uri=uri)
    first.log_row(row(1))
    kill(first)
    first.log_row(row(2))
    first.log_row(row(3, x=1.0))
    state = saved(first)  # these two were not sent
    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict(state)
    resumed.close("done")
    assert steps_of(uri, first.run_id) == once(1, 2, 3)
    assert steps_of(uri, first.run_id, "x") == once(3)


def test_two_rows_of_one_step_are_both_there_after_a_kill(uri, run):
    """The last row of a run stands at the step of the one before."""
    for state_is_taken in ("between the two", "before both"):
        killed = MLFlowLogger(run=run, tracking_uri=uri)
        state = saved(killed)
        killed.log_row(row(1))
        if state_is_taken == "between the two":
            state = saved(killed)
        kill(killed)
        resumed = MLFlowLogger(run=run, tracking_uri=uri)
        resumed.load_state_dict(state | {"run_id": killed.run_id})
        if state_is_taken == "before both":
            resumed.log_row(row(1))
        resumed.log_row(row(1))
        resumed.close("done")
        assert steps_of(uri, killed.run_id) == {2: 2}, state_is_taken


def test_two_rows_of_one_step_are_both_there_where_the_run_was_preempted_in_between(uri, run):
    first, resumed = preempted_and_resumed(uri, run)
    resumed.log_row(row(1))
    resumed.close("done")
    assert steps_of(uri, first.run_id) == {2: 2}


def test_a_run_killed_before_its_id_was_saved_is_found_by_its_folder(uri, run):
    killed = MLFlowLogger(run=run, tracking_uri=uri)
    killed.log_row(row(1))
    kill(killed)
    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict({})
    resumed.log_row(row(1))
    resumed.log_row(row(2))
    resumed.close("done")
    assert resumed.run_id == killed.run_id
    assert steps_of(uri, killed.run_id) == once(1, 2)


def test_a_folder_of_the_same_name_on_another_machine_is_another_run(uri, run):
    run.record = {"id": "11" * 8}
    here = MLFlowLogger(run=run, tracking_uri=uri)
    here.log_row(row(1))
    kill(here)
    (run.path / JOURNAL).unlink()
    run.record = {"id": "22" * 8}
    there = MLFlowLogger(run=run, tracking_uri=uri)
    there.load_state_dict({})
    there.log_row(row(1))
    there.close("done")
    assert there.run_id != here.run_id
    assert steps_of(uri, there.run_id) == once(1)


def test_the_id_in_the_runs_own_file_serves_where_no_state_was_saved(uri, run):
    run.mlflow_run_id = "ab" * 16
    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict({})
    assert resumed.run_id == run.mlflow_run_id


def test_a_run_that_the_server_no_longer_has_becomes_a_new_one_with_all_its_rows(uri, run, caplog):
    killed = MLFlowLogger(run=run, tracking_uri=f"http://127.0.0.1:{closed_port()}")
    killed.log_row(row(1))
    killed._link._process.stop()
    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict(saved(killed) | {"run_id": "0" * 32})
    resumed.log_row(row(2))
    resumed.close("done")
    assert steps_of(uri, resumed.run_id) == once(1, 2)
    assert ["has no run" in line for line in warnings_in(caplog)].count(True) == 1


def test_no_password_is_shown_or_written_down(run, caplog):
    secret = MLFlowLogger(run=run, tracking_uri=f"http://me:secret@127.0.0.1:{closed_port()}")
    secret.log_row(row(1))
    secret.should_hurry = lambda: True
    secret.close("done")
    assert "http://me@127.0.0.1" in secret.unsent
    assert "secret" not in secret.unsent + (run.path / JOURNAL).read_text()


def test_a_forged_run_id_is_not_used(uri, run):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.load_state_dict({"run_id": "../../x", "rows": 0})
    assert logger.run_id is None


def test_without_a_server_the_run_goes_on_and_the_next_start_sends_its_rows(uri, run, caplog):
    alone = MLFlowLogger(run=run, tracking_uri=f"http://127.0.0.1:{closed_port()}")
    alone.log_hparams({"lr": 1e-3})
    for step in range(1, 6):
        alone.log_row(row(step, x=float("nan")))
    state = saved(alone)

    def is_noticed():
        alone.flush()
        return warnings_in(caplog)

    wait_until(is_noticed)
    alone.log_row(row(6))  # after the checkpoint: the resumed run logs it again
    begin = time.monotonic()
    alone.close("preempted")
    assert time.monotonic() - begin < 30  # one more try, and no waiting where the server failed before
    trouble, unsent = warnings_in(caplog)
    assert "training goes on" in trouble
    assert "\n" not in trouble
    assert unsent.startswith(f"6 rows of metrics are not in MLflow yet ({alone.uri}: Connection refused)")
    assert unsent.endswith(f"; to send them: python run.py sync={run.path} logger.mlflow.tracking_uri={alone.uri}")
    lines = [json.loads(line) for line in (run.path / JOURNAL).read_text().splitlines()]
    assert [line[0] for line in lines if isinstance(line, list)] == list(range(6))

    resumed = MLFlowLogger(run=run, tracking_uri=uri)
    resumed.load_state_dict(state)
    resumed.log_row(row(6))
    resumed.log_row(row(7))
    resumed.close("done")
    assert steps_of(uri, resumed.run_id) == once(*range(1, 8))
    assert steps_of(uri, resumed.run_id, "x") == once(*range(1, 6))
    assert client_of(uri).get_run(resumed.run_id).data.params == {"lr": "0.001"}
    assert not (run.path / JOURNAL).exists()


def test_rows_left_by_another_start_of_the_folder_are_not_mixed_in(uri, run):
    (run.path / JOURNAL).write_text('[0, 2, 1000, {"train/return": 9.0}]\n')
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_row(row(5))
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(5)


def test_a_damaged_file_of_rows_gives_what_it_can(uri, run, caplog):
    good = '[0, 2, 1000, {"train/return": 9.0}]\n'
    torn = '[1, 2\n{"a": 1}\n[1, 4, 1, {"train/return": "x"}]\n[1, 4, -1, {}]\n[1e3, 4, 1, {}]\n'
    (run.path / JOURNAL).write_text(good + torn + "[" * 10**5 + "\n" + "x" * 3 * 10**6 + "\n[1, 4, 1001")
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.load_state_dict({"run_id": None, "rows": 2})
    logger.log_row(row(3))
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(1, 3)
    assert "not a row of metrics" in caplog.text


def test_one_value_that_is_refused_does_not_hold_up_the_others(uri, run, caplog):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.load_state_dict({})  # so that the file is not begun anew
    (run.path / JOURNAL).write_text('[0, 2, 4611686018427387904, {"a": 1.0, "b": 2.0}]\n')
    logger.log_row(row(1, **{"c" * 300: 1.0, "c": 3.0}))
    logger.close("done")
    assert client_of(uri).get_run(logger.run_id).data.metrics == {"c" * 250: 1.0, "c": 3.0, "train/return": 0.25}


def test_a_row_costs_the_training_thread_little(uri, run):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    values = row(1, **{f"metric/{index}": float(index) for index in range(20)})
    logger.log_row(values)
    wait_until_sent(logger)  # the thread of this test is quiet by then; a process would not be felt at all
    seconds = []
    for _ in range(500):
        begin = time.perf_counter()
        logger.log_row(values)
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[250] < 60e-6


def test_nothing_is_sent_and_no_process_is_started_before_something_is_logged(run, tmp_path):
    started = mlflow_process.SenderProcess.started
    logger = MLFlowLogger(run=run, tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
    logger.flush()
    logger.close("done")
    assert mlflow_process.SenderProcess.started == started
    assert not (tmp_path / "none.db").exists()


def test_values_that_are_no_numbers_are_left_out_with_a_warning(uri, run, caplog):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_row(row(1))
    logger.log_row(row(2, x="text"))
    logger.log_row(row(3))
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(1, 3)
    assert len(warnings_in(caplog)) == 1


def test_what_cannot_be_written_to_the_file_is_kept_for_later(uri, run, caplog):
    logger = MLFlowLogger(run=run, tracking_uri=uri)
    logger.log_row(row(1))
    os.rename(run.path, run.path.with_name("away"))
    logger.flush()
    for step in (2, 3):
        logger.log_row(row(step))
        logger.flush()
    os.rename(run.path.with_name("away"), run.path)
    logger.log_row(row(4))
    logger.close("done")
    assert steps_of(uri, logger.run_id) == once(1, 2, 3, 4)
    assert sum("cannot be written" in line for line in warnings_in(caplog)) == 1  # the sender may miss the file, too


def test_the_address_is_the_argument_or_the_environment_or_the_default(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert MLFlowLogger(run=run).uri == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert MLFlowLogger(run=run).uri == "http://127.0.0.1:1"
    assert MLFlowLogger(run=run, tracking_uri="sqlite:///x.db").uri == "sqlite:///x.db"


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
