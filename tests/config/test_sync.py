"""``sync=<folder>``: MLflow gets the rows of a run that it did not get while the run went on."""

import json
import shutil

import pytest

from runner.config.arguments import parse_arguments
from runner.config.main import main
from runner.config.report import Rejected
from runner.config.sync import folder_to_sync
from runner.loggers.journal import JOURNAL
from runner.runs import RunFolder
from tests.campaign.tracking import LightServer


@pytest.fixture
def server(monkeypatch):
    server = LightServer()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.stop()


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    run = RunFolder.start(folder, algo="dqn", env="CartPole-v1", seed=0, config_hash="0" * 16)
    run.update(status="done")
    lines = [
        {"run": {"experiment": "mine", "name": "run", "tags": {"hookline.id": run.record["id"]}}, "known": []},
        {"parameters": {"lr": "0.1"}},
        *([number, 10 * number, 1000 + number, {"x": float(number), "y": float("nan")}] for number in range(3)),
    ]
    (folder / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


def test_rows_parameters_and_status_are_sent_and_the_file_is_gone(server, run, capsys):
    assert main([f"sync={run.path}"]) == 0
    assert capsys.readouterr().out == f"sent 3 rows of metrics to MLflow at {server.uri}\n"
    ((run_id, made),) = server.runs.items()
    assert {value for value in server.values_of(run_id) if value[0] == "x"} == {
        ("x", 0, "0.0"),
        ("x", 10, "1.0"),
        ("x", 20, "2.0"),
    }
    assert server.status_of(run_id) == "FINISHED"
    assert made["data"]["params"] == [{"key": "lr", "value": "0.1"}]
    assert not (run.path / JOURNAL).exists()
    assert main([f"sync={run.path}"]) == 0
    assert "nothing to send" in capsys.readouterr().out


def test_a_sync_that_is_repeated_sends_nothing_twice(server, run, capsys):
    kept = (run.path / JOURNAL).read_bytes()
    for _ in range(2):
        (run.path / JOURNAL).write_bytes(kept)  # as if the first had been killed at its end
        assert main([f"sync={run.path}"]) == 0
    (run_id,) = server.runs
    assert server.values_of(run_id).total() == 6


def test_where_the_server_fails_the_rows_stay(server, run, capsys):
    server.reply = lambda what, body: (500, {"error_code": "INTERNAL_ERROR", "message": "out of order"})
    assert main([f"sync={run.path}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"MLflow at {server.uri} fails (")
    assert said.err.count("\n") == 1
    assert (run.path / JOURNAL).exists()


def test_the_address_is_typed_or_the_default_and_never_read_from_the_folder(server, run, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main([f"sync={run.path}", f"logger.mlflow.tracking_uri={server.uri}"]) == 0
    assert len(server.runs) == 1


def test_a_run_that_goes_on_is_left_alone(server, run, capsys):
    run.lock()
    assert main([f"sync={run.path}"]) == 2
    assert "is in use" in capsys.readouterr().err
    assert server.runs == {}


@pytest.mark.parametrize("words", [["seed=1"], ["-m"], ["logger=csv"], ["resume=x"]])
def test_nothing_else_can_be_typed_besides_it(words):
    with pytest.raises(Rejected, match="sync=<folder>"):
        folder_to_sync(parse_arguments(["sync=x", *words]))


def test_two_folders_at_once_are_refused_in_one_line(run, tmp_path, capsys):
    assert main(["sync=elsewhere", f"sync={run.path}"]) == 2
    (line, last) = capsys.readouterr().err.splitlines()
    assert line == f"sync={run.path} (command line): one folder is sent at a time; sync=elsewhere is typed too"
    assert last.endswith("nothing was started")
    assert (run.path / JOURNAL).exists()


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main([f"sync={tmp_path}"]) == 2
    assert f"sync={tmp_path} (command line): {tmp_path} is not a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json\n",
        '{"run": 7}\n[0, 1, 2, {"x": 1}]\n',
        '[0, 1, 2, {"x": 1}]\n',
        '{"run": {"tags": [1]}, "parameters": 3}\n',
    ],
)
def test_a_file_that_is_no_journal_does_no_harm(server, run, text, capsys):
    (run.path / JOURNAL).write_text(text)
    code = main([f"sync={run.path}"])
    said = capsys.readouterr()
    assert (code, said.err.count("\n")) in ((0, 0), (1, 1)), said
    assert "Traceback" not in said.err


def tags_of(server, run_id):
    return {tag["key"]: tag["value"] for tag in server.runs[run_id]["data"]["tags"]}


def append(run, number):
    """A row that waits in the folder again."""
    head = {"run": {"experiment": "mine", "name": "run", "tags": {"hookline.id": run.record["id"]}}, "known": []}
    lines = [head, [number, 10 * number, 1000 + number, {"x": float(number)}]]
    (run.path / JOURNAL).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def sent(server, run):
    """Send what waits in a folder; returns the run that it went to, as its file says then."""
    assert main([f"sync={run.path}"]) == 0
    (run_id,) = [name for name in server.runs if tags_of(server, name)["hookline.folder"] == str(run.path)]
    run.update(mlflow_run_id=run_id)
    return run_id


def test_a_copy_of_a_folder_sends_its_rows_to_a_run_of_its_own(server, run, tmp_path, caplog):
    first = sent(server, run)
    before = server.values_of(first)
    shutil.copytree(run.path, tmp_path / "copy")
    copy = RunFolder.open(tmp_path / "copy")
    append(copy, 7)
    second = sent(server, copy)
    assert second != first
    assert server.values_of(first) == before
    assert f"has no run {first} that was made for this folder" in caplog.text
    append(run, 8)
    assert sent(server, run) == first


def test_a_folder_that_was_moved_goes_on_with_its_run_and_can_be_copied_then(server, run, tmp_path):
    first = sent(server, run)
    moved = RunFolder.open(run.path.rename(tmp_path / "moved"))
    append(moved, 7)
    assert sent(server, moved) == first
    assert len(server.runs) == 1
    shutil.copytree(moved.path, tmp_path / "copy")
    copy = RunFolder.open(tmp_path / "copy")
    append(copy, 8)
    assert sent(server, copy) != first


@pytest.mark.parametrize("named_by", ["run.json", "the id's tag", "the folder's tag"])
def test_a_folder_cannot_name_a_run_that_was_not_made_for_it(server, run, tmp_path, named_by):
    theirs = sent(server, run)
    server.metrics[theirs].clear()  # one that nothing was sent to would even be removed
    (tmp_path / "other").mkdir()
    other = RunFolder.start(tmp_path / "other", algo="dqn", env="CartPole-v1", seed=0, config_hash="0" * 16)
    append(other, 7)
    if named_by == "run.json":
        other.update(mlflow_run_id=theirs)
    else:
        key, value = ("id", run.record["id"]) if named_by == "the id's tag" else ("folder", str(run.path))
        text = (other.path / JOURNAL).read_text()
        (other.path / JOURNAL).write_text(
            text.replace(f'"hookline.id": "{other.record["id"]}"', f'"hookline.{key}": "{value}"')
        )
    assert sent(server, other) != theirs
    assert server.values_of(theirs).total() == 0
    assert (server.status_of(theirs), server.runs[theirs]["info"]["lifecycle_stage"]) == ("FINISHED", "active")


def test_rows_that_were_meant_for_another_server_go_nowhere_unless_that_is_typed(server, run, capsys):
    text = (run.path / JOURNAL).read_text()
    (run.path / JOURNAL).write_text(text.replace('"name"', '"uri": "http://there:5000", "name"'))
    assert main([f"sync={run.path}"]) == 2
    told = capsys.readouterr().err.splitlines()[0]
    assert "to http://there:5000, and" in told
    assert f"to {server.uri}; type logger.mlflow.tracking_uri=" in told
    assert not server.runs
    assert main([f"sync={run.path}", f"logger.mlflow.tracking_uri={server.uri}"]) == 0


def test_an_address_that_is_none_is_refused(run, capsys):
    assert main([f"sync={run.path}", "logger.mlflow.tracking_uri=htp://foo"]) == 2
    assert "did you mean http://foo?" in capsys.readouterr().err
