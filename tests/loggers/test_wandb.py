import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from runner.loggers import wandb_sender
from runner.loggers.wandb import WandbLogger
from runner.loggers.wandb_sender import remove_earlier
from runner.spec import ConfigError
from tests.loggers.parts import once, row, warnings_in
from tests.loggers.readers import wandb_ids, wandb_rows
from tests.structure.sources import ROOT


def steps_of(folder):
    return Counter(int(row["_step"]) for row in wandb_rows(folder))


def saved(logger):
    state = logger.state_dict()
    state.pop("push").work()
    return state


class Run:
    """Stands where W&B's does: keeps what it is told; ``starting_step`` rows are at the server already."""

    url = "https://wandb.example/run"

    def __init__(self, starting_step=0):
        self.starting_step, self.rows, self.exit_code, self.config = starting_step, [], None, self
        self.parameters = {}

    def log(self, values, step):
        self.rows.append((step, values))

    def update(self, parameters, allow_val_change):
        self.parameters |= parameters

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch):
    """W&B without W&B: how each run is begun, and the run."""
    begun, runs = [], []

    def begin(self, mode):
        begun.append((mode, self._opening.id))
        if mode == "online" and begin.is_down:
            raise OSError("no route to host\nand more")
        runs.append(Run(begin.starting_step))
        return runs[-1]

    begin.is_down, begin.starting_step = False, 0
    begin.begun, begin.runs = begun, runs
    monkeypatch.setattr(wandb_sender.SenderThread, "_begin_as", begin)
    return begin


@pytest.mark.pins("WandbLogger", excludes="the process's WANDB_MODE is changed")
@pytest.mark.pins("WandbLogger", excludes="the step axis is the number of the call")
def test_an_offline_run_is_read_back_from_the_file_that_wandb_wrote(tmp_path, caplog):
    before = dict(os.environ)
    logger = WandbLogger("trial", tmp_path)
    logger.log_hparams({"a": {"b": 1}})
    for step in (10, 20):
        logger.log_row(row(step, **{"loss/q": 0.5}))
    logger.log_histogram("w", [0.0, 1.0, 1.0], step=40, bins=2)
    logger.log_video("clip", np.zeros((4, 3, 16, 16), np.uint8), step=40)
    logger.close()
    assert warnings_in(caplog) == []
    assert dict(os.environ) == before
    rows = {int(one["_step"]): one for one in wandb_rows(tmp_path / "trial")}
    assert {step: (one["train/return"], one["loss/q"]) for step, one in rows.items()} == {
        20: ("2.5", "0.5"),
        40: ("5", "0.5"),
    }
    assert (rows[40]["w/values"], rows[40]["w/bins"]) == ("[1,2]", "[0,0.5,1]")
    assert rows[40]["clip/_type"] == '"video-file"'
    assert wandb_ids(tmp_path / "trial") == {logger.id}
    assert list(tmp_path.glob("trial/wandb/offline-run-*/files/media/videos/clip_*.mp4"))


KILLED = """
import json, os, pathlib, sys
from runner.loggers.wandb import WandbLogger
from tests.loggers.parts import row, wait_until
logger = WandbLogger(run=sys.argv[1])
for step in range(1, 1501):  # W&B writes 32 kB at a time
    if step == 1401:
        state = logger.state_dict()
        state.pop("push").work()
    logger.log_row(row(step))
logger.flush()
wait_until(lambda: logger._sender._place == logger._journal.path.stat().st_size)
print(json.dumps(state), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.pins("WandbLogger", excludes="a resumed run is another run, or has steps twice")
def test_after_a_kill_every_row_is_there_once_in_a_run_of_the_same_id(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    state = json.loads(killed.stdout)
    resumed = WandbLogger(run=tmp_path)
    resumed.load_state_dict(state)
    for step in range(1401, 1503):
        resumed.log_row(row(step))
    resumed.close("done")
    assert steps_of(tmp_path) == once(*range(1, 1503))
    assert wandb_ids(tmp_path) == {state["id"]}


def test_a_journal_that_somebody_removed_is_told_of_and_wandbs_own_files_are_kept(tmp_path, fake, caplog):
    first = WandbLogger(run=tmp_path)
    first.log_row(row(1))
    state = saved(first)
    first.close("preempted")
    (tmp_path / "wandb-rows.jsonl").unlink()
    resumed = WandbLogger(run=tmp_path)
    resumed.load_state_dict(state)
    resumed.log_row(row(2))
    resumed.close("done")
    assert [one._sender._opening.has_all for one in (first, resumed)] == [False, False]
    assert [step for step, _ in fake.runs[1].rows] == [4]
    (line,) = warnings_in(caplog)
    assert line.startswith(f"{tmp_path}/wandb-rows.jsonl has 0 of 1 rows: W&B's own files of before are kept")


def test_only_the_files_of_the_same_run_are_removed(tmp_path):
    (tmp_path / "away").mkdir()
    (tmp_path / "away/file").write_text("x")
    store = tmp_path / "wandb"
    for name in ("offline-run-1-abc", "run-2-abc", "offline-run-3-other"):
        (store / name).mkdir(parents=True)
    (store / "offline-run-4-abc").symlink_to(tmp_path / "away")
    (store / "settings").write_text("[default]\nbase_url = http://elsewhere\n")
    remove_earlier(store, "abc")
    assert [path.name for path in store.iterdir()] == ["offline-run-3-other"]
    assert (tmp_path / "away/file").read_text() == "x"


def test_an_online_run_gets_only_what_it_does_not_have(tmp_path, fake):
    first = WandbLogger(run=tmp_path, offline=False)
    for step in range(1, 4):
        first.log_row(row(step))
    state = saved(first)
    first.close("preempted")
    fake.starting_step = 5  # of steps 2, 4, 6 it has two
    resumed = WandbLogger(run=tmp_path, offline=False)
    resumed.load_state_dict(state)
    resumed.log_row(row(4))
    resumed.close("done")
    assert fake.begun == [("online", first.id)] * 2
    assert [step for step, _ in fake.runs[1].rows] == [6, 8]
    assert [one.exit_code for one in fake.runs] == [1, 0]


def test_a_server_that_cannot_be_reached_is_told_of_and_the_run_is_offline(tmp_path, fake, caplog):
    fake.is_down = True
    logger = WandbLogger(run=tmp_path, offline=False)
    logger.log_row(row(1))
    logger.close("done")
    assert [mode for mode, _ in fake.begun] == ["online", "offline"]
    assert [step for step, _ in fake.runs[0].rows] == [2]
    (line,) = warnings_in(caplog)
    assert line == ("W&B cannot be reached (no route to host): this run is written to be sent later, by wandb sync")


def test_whatever_wandb_does_training_goes_on(tmp_path, fake, caplog, monkeypatch):
    def fail(self, values, step):
        raise RuntimeError("it is broken")

    monkeypatch.setattr(Run, "log", fail)
    logger = WandbLogger(run=tmp_path)
    for step in range(3):
        logger.log_row(row(step))
        logger.flush()
    logger.close("done")
    (line,) = warnings_in(caplog)
    assert line.startswith("W&B fails, this run is not shown there: it is broken; its rows are in ")


def test_a_video_from_elsewhere_is_not_taken(tmp_path, fake, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "other.mp4").write_bytes(b"")
    logger = WandbLogger(run=tmp_path / "run")
    logger.log_video("clip", tmp_path / "other.mp4", step=1)
    logger.log_row(row(1))
    logger.close("done")
    assert [step for step, _ in fake.runs[0].rows] == [2]
    assert ["is no video of this run" in line for line in warnings_in(caplog)] == [True]


def test_what_is_not_installed_is_told_in_a_line_that_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr("runner.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hookline\[wandb\]'"):
        WandbLogger(run=tmp_path)
