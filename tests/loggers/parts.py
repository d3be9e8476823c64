"""What the tests of the MLflow logger share: rows, and what a server has of them."""

import logging
import socket
import time
from collections import Counter


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


def wait_until(is_so, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def wait_until_sent(logger):
    def is_sent():
        logger.flush()
        return logger.run_id is not None and logger._link.rows == logger._journal.rows

    wait_until(is_sent)


def kill(logger):
    """Leave a run as it is when its process is killed after all that it logged was sent."""
    wait_until_sent(logger)
    logger._link._process.stop()


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
