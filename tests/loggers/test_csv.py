import csv
import logging
import os
import resource
import time
from contextlib import contextmanager

import numpy as np
import pytest

from runner.loggers.csv import CSVLogger


def row(step, **metrics):
    return {"env_steps": step, "frames": 2 * step, "updates": step // 2, "episodes": 0, **metrics}


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def full_disk(size_bytes):
    """No file of this process can grow beyond that size: writing fails as it does where space is used up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.pins("CSVLogger")
def test_the_clocks_come_first_and_metrics_in_order_of_appearance(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(10, **{"train/return": 1.0}))
    logger.log_row(row(20, **{"loss/q": 0.5, "train/return": 2.0}))
    logger.log_row(row(30, **{"eval/return": 3.0}))
    logger.close("done")
    assert (tmp_path / "metrics.csv").read_text() == (
        "env_steps,frames,updates,episodes,train/return,loss/q,eval/return\n"
        "10,20,5,0,1.0,,\n"
        "20,40,10,0,2.0,0.5,\n"
        "30,60,15,0,,,3.0\n"
    )


@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.0, 5e-324, float("inf"), np.float64(0.1), np.float32(0.1)])
def test_floats_read_back_as_the_same_bits(tmp_path, value):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(1, x=value))
    logger.flush()
    text = table(tmp_path)[0]["x"]
    assert np.float64(text).tobytes() == np.float64(value).tobytes()


def test_nan_and_odd_values_do_not_stop_it(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(1, x=float("nan"), y="text, with comma"))
    logger.flush()
    assert (table(tmp_path)[0]["x"], table(tmp_path)[0]["y"]) == ("nan", "text, with comma")


def rows_of_a_run():
    rows = [row(step, **{"train/return": step / 3}) for step in range(1, 9)]
    rows[2]["loss/q"] = 0.25
    rows[5]["eval/return, mean"] = 1.5
    return rows


@pytest.mark.parametrize("cut", range(9))
@pytest.mark.parametrize("flush_often", [True, False])
def test_a_resumed_file_equals_the_uninterrupted_one_byte_for_byte(tmp_path, cut, flush_often):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = CSVLogger(run=tmp_path / "one"), CSVLogger(run=tmp_path / "two")
    state = None
    for index, values in enumerate(rows_of_a_run()):
        if index == cut:
            state = two.state_dict()
        for logger in (one, two):
            logger.log_row(values)
            if flush_often:
                logger.flush()
    state = state or two.state_dict()
    two.flush()
    with open(tmp_path / "two" / "metrics.csv", "a") as file:
        file.write("99,99,half a li")  # the kill came while a row was written
    one.close("done")
    resumed = CSVLogger(run=tmp_path / "two")
    resumed.load_state_dict(state)
    for values in rows_of_a_run()[cut:]:
        resumed.log_row(values)
    resumed.close("done")
    assert state["rows"] == cut
    assert (tmp_path / "two" / "metrics.csv").read_bytes() == (tmp_path / "one" / "metrics.csv").read_bytes()
    assert len(table(tmp_path / "one")) == 8


def test_columns_that_came_after_the_cut_are_gone(tmp_path):
    killed = CSVLogger(run=tmp_path)
    killed.log_row(row(1, x=1.0))
    state = killed.state_dict()
    killed.log_row(row(2, x=2.0, other=3.0))
    killed.flush()
    resumed = CSVLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_row(row(2, x=2.5))
    resumed.close("done")
    assert (tmp_path / "metrics.csv").read_text() == ("env_steps,frames,updates,episodes,x\n1,2,0,0,1.0\n2,4,1,0,2.5\n")


def test_a_state_holds_every_row_logged_before_it(tmp_path):
    logger = CSVLogger(run=tmp_path)
    for step in range(5):
        logger.log_row(row(step, x=1.0))
    state = logger.state_dict()
    assert (state["rows"], state["columns"]) == (5, ["env_steps", "frames", "updates", "episodes", "x"])
    assert state["bytes"] == (tmp_path / "metrics.csv").stat().st_size
    assert len(table(tmp_path)) == 5


@pytest.mark.parametrize("content", [None, "", "other,header\n1,2\n"])
def test_a_file_that_cannot_be_continued_is_begun_anew_with_a_warning(tmp_path, content, caplog):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    logger = CSVLogger(run=tmp_path)
    logger.load_state_dict({"rows": 3, "columns": ["env_steps", "frames", "updates", "episodes", "x"]})
    logger.log_row(row(4, y=2.0))
    logger.close("done")
    assert [values["y"] for values in table(tmp_path)] == ["2.0"]
    assert "begun anew" in caplog.text


def test_rows_lost_with_the_machine_are_counted(tmp_path, caplog):
    logger = CSVLogger(run=tmp_path)
    for step in range(3):
        logger.log_row(row(step, x=1.0))
    state = logger.state_dict()
    lines = (tmp_path / "metrics.csv").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.csv").write_text("".join(lines[:2]))
    resumed = CSVLogger(run=tmp_path)
    resumed.load_state_dict(state)
    assert "only 1 of the 3 rows" in caplog.text
    assert resumed.state_dict()["rows"] == 1


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_half_of_a_row_is_no_row(tmp_path, caplog, cut):
    logger = CSVLogger(run=tmp_path)
    for step in (10, 20, 30):
        logger.log_row(row(step, x=123.456))
    state = logger.state_dict()
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    resumed = CSVLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_row(row(40, x=1.0))
    resumed.close("done")
    assert [(one["env_steps"], one["x"]) for one in table(tmp_path)] == [
        ("10", "123.456"), ("20", "123.456"), ("40", "1.0"),
    ]  # fmt: skip
    assert "only 2 of the 3 rows" in caplog.text


def change_a_value(path):
    path.write_text(path.read_text().replace("0.5", "0.7"))


def leave_out_a_row(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:]]))


def make_it_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_it_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("later_columns", [False, True])
@pytest.mark.parametrize("damage", [change_a_value, leave_out_a_row, make_it_a_pipe, make_it_a_folder])
def test_rows_that_were_changed_since_are_told_of_and_put_aside(tmp_path, caplog, damage, later_columns):
    logger = CSVLogger(run=tmp_path)
    for step in range(4):
        logger.log_row(row(step, x=0.5 * step))
    state = logger.state_dict()
    logger.log_row(row(4, x=2.0, **{"later": 1.0} if later_columns else {}))
    logger.flush()
    damage(tmp_path / "metrics.csv")
    found = os.lstat(tmp_path / "metrics.csv").st_ino
    resumed = CSVLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_row(row(4, x=2.0))
    resumed.close("done")
    assert len([record for record in caplog.records if "metrics-damaged.csv" in record.getMessage()]) == 1
    assert os.lstat(tmp_path / "metrics-damaged.csv").st_ino == found
    assert table(tmp_path)[-1]["env_steps"] == "4"


def test_a_file_with_the_right_rows_is_cut_where_it_is(tmp_path, caplog):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(1, x=1.0))
    state, inode = logger.state_dict(), (tmp_path / "metrics.csv").stat().st_ino
    logger.log_row(row(2, x=1.0))
    logger.close("done")
    CSVLogger(run=tmp_path).load_state_dict(state)
    assert (len(table(tmp_path)), (tmp_path / "metrics.csv").stat().st_ino) == (1, inode)
    assert not caplog.records


def test_a_file_elsewhere_is_never_cut_or_written_to(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(1, x=1.0))
    state = logger.state_dict()
    logger.log_row(row(2, x=1.0))
    logger.close("done")
    for link in (os.symlink, os.link):
        elsewhere = tmp_path / link.__name__
        os.rename(tmp_path / "metrics.csv", elsewhere)
        link(elsewhere, tmp_path / "metrics.csv")
        before = elsewhere.read_bytes()
        resumed = CSVLogger(run=tmp_path)
        resumed.load_state_dict(state)
        resumed.log_row(row(2, x=1.0))
        resumed.close("done")
        assert elsewhere.read_bytes() == before
        assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path, caplog):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(0, x=0.0))
    with full_disk(300):
        for step in range(1, 100):
            logger.log_row(row(step, x=step / 3))
            logger.flush()
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    logger.log_row(row(100, x=1.0))
    logger.close("done")
    rows = table(tmp_path)
    assert [int(values["env_steps"]) for values in rows] == list(range(101))
    assert [float(values["x"]) for values in rows] == [step / 3 for step in range(100)] + [1.0]
    assert {len(values) for values in rows} == {5}  # no line was written into another


def test_it_says_why_a_run_has_to_end_as_long_as_the_disk_takes_no_more(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(0, x=0.0))
    assert logger.failure is None
    with full_disk(100):
        for step in range(1, 20):
            logger.log_row(row(step, x=1.0))
        logger.flush()
        assert logger.failure == f"{tmp_path}/metrics.csv cannot be written: File too large"
        assert not [name for name in os.listdir(tmp_path) if name != "metrics.csv"]
    logger.flush()
    assert logger.failure is None


def test_a_file_that_somebody_removed_is_no_reason_to_end_a_run(tmp_path, caplog):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(0, x=0.0))
    os.unlink(logger.path)
    for step in range(1, 5):
        logger.log_row(row(step, x=1.0))
        logger.flush()
    assert logger.failure is None
    assert ["cannot be written" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("new_column", [False, True])
def test_rows_that_found_no_space_are_in_the_state_and_written_by_the_resumed_run(tmp_path, new_column):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = CSVLogger(run=tmp_path / "one"), CSVLogger(run=tmp_path / "two")
    rows = [row(step, **{"x": step / 3, **({"later": 0.5} if new_column and step > 5 else {})}) for step in range(10)]
    for values in rows[:4]:
        one.log_row(values)
        two.log_row(values)
    two.flush()
    with full_disk((tmp_path / "two" / "metrics.csv").stat().st_size + 10):  # the next row is torn
        for values in rows[4:8]:
            two.log_row(values)
            two.flush()
        state = two.state_dict()
    assert (state["rows"], len(state["unwritten"])) == (4, 4)
    resumed = CSVLogger(run=tmp_path / "two")
    resumed.load_state_dict(state)
    for values in rows[4:]:
        one.log_row(values)
    for values in rows[8:]:
        resumed.log_row(values)
    one.close("done")
    resumed.close("done")
    assert (tmp_path / "one" / "metrics.csv").read_text() == (tmp_path / "two" / "metrics.csv").read_text()


@pytest.mark.pins("CSVLogger", excludes="a flush for each value")
def test_rows_are_written_now_and_then_not_each_time(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_row(row(1, x=1.0))
    for step in range(2, 50):
        logger.log_row(row(step, x=1.0))
    assert len(table(tmp_path)) == 1
    logger.flush()
    assert len(table(tmp_path)) == 49


def test_a_row_costs_the_training_thread_little(tmp_path):
    logger = CSVLogger(run=tmp_path)
    values = row(1, **{f"metric/{index}": float(index) for index in range(20)})
    logger.log_row(values)
    seconds = []
    for _ in range(500):
        begin = time.perf_counter()
        logger.log_row(values)
        seconds.append(time.perf_counter() - begin)
    assert sorted(seconds)[250] < 20e-6
