import os
import resource
import threading

import pytest

from runner.loggers import journal as module
from runner.loggers.journal import Journal, Row, read_lines


def row(number):
    return Row(number, 10 * number, 1000 + number, {"x": number / 3})


def numbers_in(path):
    return [line.number for line, _ in read_lines(path) if isinstance(line, Row)]


def test_lines_are_read_as_they_were_written_and_from_where_one_stopped(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.add({"run": {"name": "a"}})
    journal.add(row(0))
    journal.write()
    first = list(read_lines(journal.path))
    journal.add(row(1))
    journal.write()
    assert [line for line, _ in first] == [{"run": {"name": "a"}}, row(0)]
    assert [line for line, _ in read_lines(journal.path, first[-1][1])] == [row(1)]
    assert journal.rows == 2


def test_a_line_that_is_not_finished_is_not_read(tmp_path):
    path = tmp_path / "journal"
    path.write_text('[0, 0, 1000, {"x": 0.0}]\n[1, 10, 1001, {"x": 0')
    ((line, end),) = read_lines(path)
    assert line == row(0)
    path.write_text('[0, 0, 1000, {"x": 0.0}]\n[1, 10, 1001, {"x": 0.3333333333333333}]\n')
    assert [line for line, _ in read_lines(path, end)] == [row(1)]


@pytest.mark.parametrize("torn", ["", "[7, 70", "[" * 10**5])
@pytest.mark.parametrize("below", range(5))
def test_it_is_cut_where_a_resumed_run_goes_on(tmp_path, below, torn):
    killed = Journal(tmp_path / "journal")
    killed.add({"run": {}})
    for number in range(4):
        killed.add(row(number))
    killed.write()
    with open(killed.path, "a") as file:
        file.write(torn)
    resumed = Journal(killed.path)
    resumed.cut(below)
    assert resumed.rows == min(below, 4)
    resumed.add(row(below))
    resumed.write()
    assert numbers_in(killed.path) == [*range(min(below, 4)), below]


def test_a_full_disk_tears_no_line_and_loses_none(tmp_path):
    journal = Journal(tmp_path / "journal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    seen = []
    try:
        for number in range(20):
            journal.add(row(number))
            try:
                journal.write()
            except OSError:
                seen += numbers_in(journal.path)[len(seen) :]  # the reader goes on meanwhile
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0 < len(seen) < 20
    journal.write()
    assert numbers_in(journal.path) == list(range(20))


def test_what_waits_for_a_full_disk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_PENDING_LINES", 3)
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.add(row(number))
    with pytest.raises(OverflowError):
        journal.add(row(3))
    journal.write()
    assert numbers_in(journal.path) == [0, 1, 2]


def test_a_link_or_a_pipe_in_its_place_is_neither_followed_nor_waited_for(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious\n")
    os.symlink(elsewhere, tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        journal = Journal(tmp_path / name)
        with pytest.raises(OSError):
            journal.cut(1)
        with pytest.raises(OSError):
            list(read_lines(journal.path))
        journal.add(row(0))
        with pytest.raises(OSError):
            journal.write()
        journal.clear()
    assert elsewhere.read_text() == "precious\n"


def test_values_that_no_row_has_are_not_read(tmp_path, caplog):
    path = tmp_path / "journal"
    wrong = [
        "[1, 2]",
        '[1, 2, 3, {"x": "y"}]',
        '[1, 2, -3, {"x": 1}]',
        '[1, 2, 1e3, {"x": 1}]',
        '[true, 2, 3, {"x": 1}]',
    ]
    wrong += [
        '[1, 2, 9223372036854775807, {"x": 1}]',
        '[1, 2, 3, ["x"]]',
        "null",
        '[1, 2, 3, {"x": "1"}]',
        f'[1, 2, 3, {{"x": 1{"0" * 400}}}]',
        "[" * 2000,
        "[1, 2, 3, {}" + " " * 2**21,
    ]
    path.write_text("".join(f"{line}\n" for line in wrong) + '[0, 0, 1000, {"x": 0.0}]\n')
    assert [line for line, _ in read_lines(path)] == [row(0)]
    assert len(caplog.records) == 1


def test_it_can_be_pushed_to_the_disk_from_another_thread(tmp_path, monkeypatch):
    journal, pushed, fsync = Journal(tmp_path / "journal"), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: pushed.append(fsync(descriptor)))
    for expected in (0, 2):  # the file, and its name in the folder
        thread = threading.Thread(target=journal.push)
        thread.start()
        thread.join()
        assert len(pushed) == expected
        journal.add(row(0))
        journal.write()
