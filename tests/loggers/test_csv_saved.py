"""Metric rows that a checkpoint says are on the disk, and those that it holds itself."""

import errno
import logging
import os

import pytest

from runner.checkpoint.store import CheckpointStore
from runner.loggers import csv as csv_module
from runner.loggers import journal as journal_module
from runner.loggers.csv import CSVLogger
from runner.loggers.journal import Journal
from runner.spec import CheckpointError


def row(step, **metrics):
    return {"env_steps": step, "frames": step, "updates": 0, "episodes": 0, **metrics}


def failing(number):
    def make_durable(path):
        raise OSError(number, os.strerror(number))

    return make_durable


@pytest.fixture
def csv(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(1, x=1.0))
    return logger


def save(tmp_path, logger):
    return CheckpointStore(tmp_path, backend="torch").save({"csv": logger.state_dict()}, {"env_steps": 1})


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_no_checkpoint_counts_whose_rows_of_metrics_the_disk_did_not_keep(tmp_path, monkeypatch, csv, number):
    with monkeypatch.context() as patch:
        patch.setattr(csv_module, "make_durable", failing(number))
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, csv)
    assert f"{os.strerror(number)}: '{csv.path}'" in str(caught.value)
    assert os.listdir(tmp_path / "ckpt") == []
    assert save(tmp_path, csv).is_dir()


def test_a_table_that_somebody_removed_holds_up_no_checkpoint(tmp_path, csv):
    csv.flush()
    os.unlink(csv.path)
    assert save(tmp_path, csv).is_dir()


def test_a_run_ends_all_the_same_when_the_last_rows_cannot_be_pushed(monkeypatch, caplog, csv):
    monkeypatch.setattr(csv_module, "make_durable", failing(errno.EIO))
    csv.close("done")
    assert ["cannot be pushed to the disk" in record.getMessage() for record in caplog.records] == [True]


def test_rows_on_their_way_to_a_server_hold_up_no_checkpoint_but_are_told_of(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path / "journal")
    journal.push()
    assert not caplog.records
    monkeypatch.setattr(journal_module, "make_durable", failing(errno.EIO))
    journal.push()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_run_has_to_end_while_a_checkpoint_still_holds_the_rows_that_were_not_written(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    logger, values = CSVLogger(run=tmp_path), {f"metric/{index}": 0.5 for index in range(12)}
    for step in range(6_000):
        logger.log_row(row(step, **values))
    logger.flush()
    assert logger.failure is None
    for step in range(6_000, 7_000):
        logger.log_row(row(step, **values))
    state = logger.state_dict()
    assert logger.failure == f"{tmp_path}/metrics.csv cannot be written: not a file"
    assert len(state["unwritten"]) == 7_000
    save_and_load(tmp_path, state)


def test_rows_are_given_up_rather_than_checkpoints_where_a_run_does_not_end(tmp_path, caplog):
    (tmp_path / "metrics.csv").mkdir()
    logger, values = CSVLogger(run=tmp_path), {f"metric/{index}": 0.5 for index in range(12)}
    for step in range(40_000):
        logger.log_row(row(step, **values))
    state = logger.state_dict()
    assert [kept["env_steps"] for kept in state["unwritten"]] == list(range(27_500, 40_000))
    assert sum(int(words.split("oldest ")[1].split()[0]) for words in caplog.messages if "oldest" in words) == 27_500
    save_and_load(tmp_path, state)


def save_and_load(folder, state):
    store = CheckpointStore(folder, backend="torch")
    store.save({"csv": state}, {"env_steps": 1})
    assert store.load()[0]["csv"]["unwritten"] == state["unwritten"]
