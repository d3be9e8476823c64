"""Loggers without a run, by the names of the trainer page."""

import csv
import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from runner.loggers.base import Histogram, Logger, generate_exp_name
from runner.loggers.choose import LOGGERS, get_logger
from runner.loggers.csv import CSVLogger
from runner.loggers.mlflow import MLFlowLogger
from runner.spec import ConfigError
from tests.loggers.parts import client_of


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.pins("get_logger", excludes="another type than there is ends in NotImplementedError")
def test_a_logger_is_found_by_its_type(tmp_path):
    made = get_logger("csv", tmp_path / "logs", "first")
    assert (type(made), made.exp_name, made.log_dir, made.folder) == (
        CSVLogger, "first", tmp_path / "logs", tmp_path / "logs/first",
    )  # fmt: skip
    assert get_logger("", tmp_path, "first") is None
    assert get_logger(None, tmp_path, "first") is None
    with pytest.raises(ConfigError) as refused:
        get_logger("tensorbord", tmp_path, "first")
    assert str(refused.value) == (
        "there is no logger 'tensorbord': choose from csv, mlflow, tensorboard, wandb; did you mean tensorboard?"
    )
    assert all(issubclass(one, Logger) for one in LOGGERS.values())


def test_a_logger_alone_needs_a_name():
    with pytest.raises(ValueError, match="CSVLogger needs exp_name"):
        CSVLogger()


@pytest.mark.pins("generate_exp_name", excludes="a resumed run forks its logs under a new name")
def test_a_generated_name_has_both_names_and_is_another_each_time(tmp_path):
    name = generate_exp_name("model", "trial")
    assert re.fullmatch(r"model_trial_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{8}", name)
    assert len({generate_exp_name("a", "b") for _ in range(20)}) == 20
    # A run needs none: its folder is its name, whichever process goes on with it.
    assert CSVLogger(run=tmp_path).exp_name == CSVLogger(run=tmp_path).exp_name == tmp_path.name


@pytest.mark.pins("Logger")
@pytest.mark.pins("CSVLogger", excludes="one file without a header for each metric")
def test_scalars_become_rows_with_a_step(tmp_path):
    logger = CSVLogger("e", tmp_path)
    logger.log_scalar("a", torch.tensor(0.5), step=10)
    logger.log_scalars({"a": 1, "b": np.float32(0.25)}, step=20)
    logger.log_scalar("b", 7.0)  # without a step: the one after the last
    logger.close()
    rows = [{name: row[name] for name in ("frames", "a", "b")} for row in table(tmp_path / "e/metrics.csv")]
    assert rows == [
        {"frames": "10", "a": "0.5", "b": ""},
        {"frames": "20", "a": "1.0", "b": "0.25"},
        {"frames": "21", "a": "", "b": "7.0"},
    ]


@pytest.mark.parametrize("value", ["text", torch.zeros(2), None])
def test_what_is_no_number_is_refused_in_a_line(tmp_path, value):
    with pytest.raises(ValueError, match=r"^x: a scalar is one number; a \w+ is given$"):
        CSVLogger("e", tmp_path).log_scalar("x", value)


def test_a_histogram_counts_what_is_finite():
    found = Histogram.of(torch.tensor([0.0, 1.0, 1.5, 4.0, float("nan"), float("inf")]), bins=4)
    # Edges 0, 1, 2, 3, 4: the upper one belongs to the last bin.
    assert (found.counts, found.edges) == ([1, 2, 0, 1], [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.total, found.total_of_squares) == (6.5, 19.25)
    assert Histogram.of([1, 2, 9], bins=[0, 2, 10]).counts == [1, 2]
    with pytest.raises(ValueError, match="at least one finite number"):
        Histogram.of([float("nan")])


@pytest.mark.pins("CSVLogger", excludes="log_histogram raises NotImplementedError")
def test_histograms_are_a_long_table_that_a_resumed_run_continues(tmp_path):
    logger = CSVLogger(run=tmp_path)
    logger.log_histogram("w", [0.0, 1.0, 1.0], step=5, bins=2)
    state = logger.state_dict()
    logger.log_histogram("w", [9.0], step=6, bins=3)  # lost with the process
    resumed = CSVLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_histogram("w", [0.0, 4.0], step=7, bins=1)
    assert [tuple(row.values()) for row in table(tmp_path / "histograms.csv")] == [
        ("5", "w", "0.0", "0.5", "1"),
        ("5", "w", "0.5", "1.0", "2"),
        ("7", "w", "0.0", "4.0", "2"),
    ]


@dataclass
class Settings:
    lr: float = 0.1


@pytest.mark.pins("CSVLogger", excludes="log_hparams of a dataclass fails")
def test_parameters_of_any_kind_are_written_where_no_run_has_them(tmp_path):
    alone = CSVLogger("e", tmp_path)
    alone.log_hparams(Settings())
    assert json.loads((tmp_path / "e/hparams.json").read_text()) == {"lr": 0.1}
    CSVLogger(run=tmp_path).log_hparams({"lr": 0.1})
    assert not (tmp_path / "hparams.json").exists()
    with pytest.raises(ValueError, match="a mapping or a dataclass; a int is given"):
        alone.log_hparams(3)


@pytest.mark.pins("CSVLogger")
def test_a_video_is_a_file_named_after_its_step(tmp_path):
    logger = CSVLogger("e", tmp_path)
    logger.log_video("best/run", np.zeros((3, 3, 16, 16), np.uint8), step=12)
    assert [path.name for path in (tmp_path / "e/videos").iterdir()] == ["best_run-12.mp4"]


def test_a_disk_that_takes_nothing_is_told_of_once_and_stops_nobody(tmp_path, caplog):
    logger = CSVLogger("e", tmp_path)
    (tmp_path / "e").rmdir()
    (tmp_path / "e").write_text("a file where the folder was")
    logger.log_hparams({"lr": 0.1})
    logger.log_histogram("w", [0.0, 1.0], step=1)
    logger.log_video("v", np.zeros((2, 3, 16, 16), np.uint8), step=1)
    told = [line for line in caplog.messages if "what it was given is lost" in line]
    assert len(told) == 1
    assert "CSVLogger fails at log_hparams" in told[0]
    with pytest.raises(ValueError, match="at least one finite number"):  # what is wrong with the call is still said
        logger.log_histogram("w", [])


@pytest.mark.usefixtures("in_thread")
@pytest.mark.pins("MLFlowLogger", excludes="log_histogram raises NotImplementedError")
@pytest.mark.pins("MLFlowLogger", excludes="the video of step 0 loses its step")
def test_mlflow_alone_has_scalars_videos_and_histograms(tmp_path, uri):
    logger = MLFlowLogger("trial", tmp_path / "logs", tracking_uri=uri)
    logger.log_hparams({"a": {"b": 1}})
    logger.log_scalar("x", 1.5, step=3)
    logger.log_video("clip", np.zeros((4, 3, 16, 16), np.uint8), step=0)
    logger.log_histogram("w", [0.0, 1.0], step=4, bins=1)
    logger.close()
    client = client_of(uri)
    run = client.get_run(logger.run_id)
    assert client.get_experiment(run.info.experiment_id).name == "trial"
    assert (run.data.params, run.data.metrics) == ({"a.b": "1"}, {"x": 1.5})
    assert [file.path for file in client.list_artifacts(logger.run_id, "videos")] == ["videos/clip-0.mp4"]
    (found,) = client.list_artifacts(logger.run_id, "histograms")
    local = client.download_artifacts(logger.run_id, found.path, str(tmp_path))
    with open(local) as file:
        assert json.load(file) == {"counts": [2], "edges": [0.0, 1.0], "total": 1.0, "total_of_squares": 1.0}


@pytest.mark.usefixtures("in_thread")
@pytest.mark.pins("Logger", excludes="there is no flush and no close, or not in every logger")
@pytest.mark.parametrize("kind", LOGGERS)
def test_every_logger_takes_everything_and_can_be_flushed_and_closed(tmp_path, uri, kind):
    logger = get_logger(kind, tmp_path, "e", **({"tracking_uri": uri} if kind == "mlflow" else {}))
    logger.log_hparams({"lr": 0.1})
    logger.log_scalars({"x": 1.0}, step=1)
    logger.log_histogram("h", [0.0, 1.0], step=1)
    logger.log_video("v", np.zeros((2, 1, 3, 16, 16), np.uint8), step=1)
    logger.flush()
    state = {name: value for name, value in logger.state_dict().items() if name != "push"}
    assert json.loads(json.dumps(state)) == state  # what a checkpoint can hold
    logger.close()
    logger.close("crashed")  # whoever closes again changes nothing
