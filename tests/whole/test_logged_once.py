"""A run that logs everywhere and is killed again and again: one run in each, with every row, video and step once."""

import json
import random
import signal
import sqlite3
import time
from collections import Counter

import pytest

from runner.loggers.mlflow_database import create_database
from tests.loggers.parts import client_of
from tests.loggers.readers import csv_steps, events_of, raw_steps_of, wandb_ids, wandb_rows
from tests.whole.children import fork, is_done
from tests.whole.runs import compose

METRIC = "train/epsilon"
KILLS = 4


def config_of(uri):
    return compose(
        "total_frames=4000", "hooks=[default,record_video]", "hooks.record_video.episodes=1",
        "hooks.record_video.every={env_steps: 900}", "hooks.record_video.recorder.max_frames=20",
        "logger=[csv,mlflow,tensorboard,wandb]", f"logger.mlflow.tracking_uri={uri}", "log_every.env_steps=100",
        "checkpoint.every.env_steps=300", "hooks.log_exploration.every.env_steps=100",
    )  # fmt: skip


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.pins("Logger", excludes="rows are there twice, or missing, after a run was killed and resumed")
def test_a_run_killed_several_times_is_one_run_in_each_logger_with_every_step_once(tmp_path):
    create_database(tmp_path / "mlflow.db")
    uri, folder, chance = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run", random.Random(0)
    config = config_of(uri)
    for number in range(1, KILLS + 1):
        child = fork(config, folder)
        wanted, since = folder / "ckpt" / f"step-{600 * number}", time.monotonic()
        while not wanted.exists():
            assert not child.has_ended(0.002), child.output()
            assert time.monotonic() < since + 120
        time.sleep(chance.uniform(0.0, 0.3))
        assert child.kill() == -signal.SIGKILL
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    assert is_done(folder)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1

    expected = Counter(range(100, 4001, 100))
    assert csv_steps(folder, METRIC) == expected
    scalars = events_of(folder / "tensorboard").Scalars(METRIC)
    assert Counter(event.step for event in scalars) == raw_steps_of(folder / "tensorboard", METRIC) == expected
    rows = wandb_rows(folder)
    assert Counter(int(row["_step"]) for row in rows if METRIC in row) == expected
    assert max(Counter(int(row["_step"]) for row in rows).values()) == 1
    assert wandb_ids(folder) == {json.loads((folder / "run.json").read_text())["id"]}
    client = client_of(uri)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        ((run_id,),) = database.execute("select run_uuid from runs where lifecycle_stage = 'active'").fetchall()
    assert Counter(metric.step for metric in client.get_metric_history(run_id, METRIC)) == expected

    steps = [900, 1800, 2700, 3600]
    files = sorted(path.name for path in (folder / "videos").iterdir())
    assert files == sorted(f"greedy-{step}.mp4" for step in steps)
    assert sorted(file.path for file in client.list_artifacts(run_id, "videos")) == [f"videos/{name}" for name in files]
    shown = events_of(folder / "tensorboard", "images").Images("video/greedy")
    assert [image.step for image in shown] == steps
    assert [int(row["_step"]) for row in rows if "video/greedy/path" in row] == steps
