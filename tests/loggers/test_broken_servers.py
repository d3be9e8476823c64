"""What a tracking server may answer, and what becomes of the values then."""

import itertools
import threading
import time

import pytest

from runner.loggers import mlflow as module
from runner.loggers import mlflow_sender
from runner.loggers.journal import JOURNAL
from runner.loggers.mlflow import MLFlowLogger
from tests.campaign.tracking import LOG_BATCH, LightServer, Proxy
from tests.loggers.parts import kill, once, row, wait_until, wait_until_sent, warnings_in

pytestmark = pytest.mark.usefixtures("in_thread")


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(mlflow_sender, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(mlflow_sender, "LONGEST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(mlflow_sender, "RETRY_AT_CLOSE_SECONDS", 0.02)


@pytest.fixture
def server():
    server = LightServer()
    yield server
    server.stop()


@pytest.fixture
def behind(server):
    """Makes a proxy with a script, of which a new part begins with each request for ``log-batch``."""
    proxies = []

    def make(*actions, others="pass"):
        left = itertools.chain(actions, itertools.repeat("pass"))
        proxies.append(Proxy(server.port, lambda number, path, seconds: next(left) if LOG_BATCH in path else others))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.stop()


def steps_at(server, run_id, name="train/return"):
    return {step: count for (key, step, _), count in server.values_of(run_id).items() if key == name}


@pytest.mark.parametrize("action", ["fail", "fail after", "lose", "tear", "garble", "refuse"])
@pytest.mark.parametrize("batch", [1, 2])
def test_whatever_becomes_of_an_answer_every_value_is_there_once(server, behind, run, action, batch):
    proxy = behind(*["pass"] * batch, action, action, "pass", action)
    logger = MLFlowLogger(run=run, tracking_uri=proxy.uri)
    logger.log_hparams({"lr": 1e-3})
    for step in range(1, 7):
        logger.log_row(row(step, x=float(step)))
        wait_until_sent(logger)
    logger.close("done")
    assert proxy.counts[action] == 3
    for name in ("train/return", "x"):
        assert steps_at(server, logger.run_id, name) == once(*range(1, 7))
    assert server.status_of(logger.run_id) == "FINISHED"
    assert logger.unsent is None


def test_a_request_that_arrives_after_it_was_given_up_and_repeated_says_the_same(server, behind, run, monkeypatch):
    """Nobody can know that it still arrives; MLflow on a database takes equal values once."""
    server.has_database = True
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy, arrived, reply = behind("pass", "slow"), [], server.reply
    server.reply = lambda what, body: (arrived.append(what) if body.get("metrics") else None, reply(what, body))[1]
    logger = MLFlowLogger(run=run, tracking_uri=proxy.uri)
    logger.log_hparams({"lr": 1e-3})
    wait_until(lambda: proxy.counts["pass"] > 3)
    logger.log_row(row(1))
    wait_until_sent(logger)
    logger.close("done")
    assert proxy.counts["slow"] == 1
    wait_until(lambda: len(arrived) == 2)
    assert steps_at(server, logger.run_id) == once(1)


def test_values_that_the_server_only_says_it_took_are_sent_again(server, behind, run):
    proxy = behind("pass", "lie")
    logger = MLFlowLogger(run=run, tracking_uri=proxy.uri)
    logger.log_hparams({"lr": 1e-3})
    for step in range(1, 4):
        logger.log_row(row(step))
        wait_until_sent(logger)
    logger.close("done")
    assert proxy.counts["lie"] == 1
    assert steps_at(server, logger.run_id) == once(1, 2, 3)


def test_a_server_that_always_lies_leaves_the_rows_in_the_folder(server, behind, run, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.5)
    proxy = behind("pass", *["lie"] * 50)
    logger = MLFlowLogger(run=run, tracking_uri=proxy.uri)
    logger.log_hparams({"lr": 1e-3})
    logger.log_row(row(1))
    wait_until_sent(logger)
    logger.close("done")
    assert "not in MLflow yet" in logger.unsent
    assert (run.path / JOURNAL).exists()


def test_a_server_that_forgets_the_run_gets_all_of_it_again(server, run):
    logger = MLFlowLogger(run=run, tracking_uri=server.uri)
    logger.log_hparams({"lr": 1e-3})
    logger.log_row(row(1))
    wait_until_sent(logger)
    first = logger.run_id
    server.runs.clear()
    server.metrics.clear()
    logger.log_row(row(2))
    logger.flush()
    wait_until(lambda: (logger.flush(), logger.run_id != first)[1])
    logger.close("done")
    assert steps_at(server, logger.run_id) == once(1, 2)
    assert server.runs[logger.run_id]["data"]["params"] == [{"key": "lr", "value": "0.001"}]


def test_of_two_runs_that_a_server_made_because_it_denied_the_first_one_is_left(server, run):
    lies = {"runs/create": ["garble"], "runs/search": ["lie"]}

    def script(number, path, seconds):
        asked = path.rpartition("/mlflow/")[2]
        return lies[asked].pop() if lies.get(asked) else "pass"

    proxy = Proxy(server.port, script)
    logger = MLFlowLogger(run=run, tracking_uri=proxy.uri)
    logger.log_hparams({"lr": 1e-3})
    logger.log_row(row(1))
    wait_until_sent(logger)
    assert len(server.runs) == 2
    logger.close("done")
    proxy.stop()
    stages = {run_id: made["info"]["lifecycle_stage"] for run_id, made in server.runs.items()}
    assert stages.pop(logger.run_id) == "active"
    assert list(stages.values()) == ["deleted"]
    assert steps_at(server, logger.run_id) == once(1)


def test_a_resumed_run_goes_on_in_the_one_of_two_that_has_its_values(server, run):
    killed = MLFlowLogger(run=run, tracking_uri=server.uri)
    killed.log_row(row(1))
    kill(killed)
    tags = server.runs[killed.run_id]["data"]["tags"]
    server._create({"experiment_id": "1", "tags": tags})
    resumed = MLFlowLogger(run=run, tracking_uri=server.uri)
    resumed.load_state_dict({})
    resumed.log_row(row(1))
    resumed.log_row(row(2))
    resumed.close("done")
    assert resumed.run_id == killed.run_id
    assert steps_at(server, resumed.run_id) == once(1, 2)


def test_one_value_that_is_refused_does_not_hold_up_the_others(server, run, caplog):
    server.refused = {"bad"}
    logger = MLFlowLogger(run=run, tracking_uri=server.uri)
    for step in range(1, 30):
        logger.log_row(row(step, **({"bad": 1.0} if step == 7 else {}), **{f"m/{index}": 1.0 for index in range(9)}))
    logger.close("done")
    assert steps_at(server, logger.run_id) == once(*range(1, 30))
    assert steps_at(server, logger.run_id, "m/8") == once(*range(1, 30))
    assert ["MLflow refuses bad = 1.0" in line for line in warnings_in(caplog)] == [True]


def test_a_server_that_refuses_everything_for_a_while_costs_no_value(server, run, caplog):
    server.refused = {"train/return", "x"}
    logger = MLFlowLogger(run=run, tracking_uri=server.uri)
    for step in range(1, 30):
        logger.log_row(row(step, x=1.0))
    logger.flush()
    time.sleep(0.3)
    server.refused = set()
    wait_until_sent(logger)
    logger.close("done")
    assert not [line for line in warnings_in(caplog) if line.startswith("MLflow refuses")]
    assert steps_at(server, logger.run_id) == once(*range(1, 30))


@pytest.mark.parametrize("run_id", ["../../x", "", 7, None, "A" * 32])
def test_a_run_that_is_named_by_what_is_no_id_is_not_taken(server, run, run_id, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.5)
    create = server._create
    server._create = lambda body: (lambda made: {**made, "info": {**made["info"], "run_id": run_id}})(create(body))
    logger = MLFlowLogger(run=run, tracking_uri=server.uri)
    logger.log_row(row(1))
    time.sleep(0.3)
    server._create = create
    logger.close("done")
    assert logger.run_id is None or logger.run_id in server.runs


def test_another_address_that_a_server_names_is_not_followed(server, run, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    elsewhere = LightServer()
    reply = server.reply
    server.reply = lambda what, body: (307, {"elsewhere": reply(what, body)})
    end_headers = server._server.RequestHandlerClass.end_headers

    def with_location(handler):
        handler.send_header("Location", f"{elsewhere.uri}{handler.path}")
        end_headers(handler)

    server._server.RequestHandlerClass.end_headers = with_location
    logger = MLFlowLogger(run=run, tracking_uri=server.uri)
    logger.log_row(row(1))
    time.sleep(0.2)
    logger.close("done")
    elsewhere.stop()
    assert elsewhere.experiments == {}


def test_a_server_that_never_answers_costs_the_training_thread_nothing(server, behind, run, monkeypatch):
    monkeypatch.setattr(module, "PREEMPTED_SECONDS", 0.2)
    logger = MLFlowLogger(run=run, tracking_uri=behind(others="hang").uri)
    begin = time.perf_counter()
    for step in range(2000):
        logger.log_row(row(step))
    logger.flush()
    state = logger.state_dict()
    assert time.perf_counter() - begin < 1
    assert state["rows"] == 2000
    logger.close("preempted")
    assert time.perf_counter() - begin < 3
    assert len((run.path / JOURNAL).read_text().splitlines()) == 2001


def test_many_threads_of_a_server_see_one_request_at_a_time(server, run):
    """Values of one run are sent in order, so that what the server has is always the beginning."""
    busy, most = threading.Semaphore(1), []
    reply = server.reply

    def alone(what, body):
        most.append(busy.acquire(blocking=False))
        time.sleep(0.001)
        busy.release()
        return reply(what, body)

    server.reply = alone
    logger = MLFlowLogger(run=run, tracking_uri=server.uri)
    for step in range(500):
        logger.log_row(row(step, **{f"m/{index}": 1.0 for index in range(9)}))
    logger.close("done")
    assert all(most)
    assert steps_at(server, logger.run_id) == once(*range(500))
