"""Runs that keep the checkpoint of their best evaluated weights, named in run.json and gone on from by its name."""

import signal
import time

import pytest

from runner.checkpoint.store import CheckpointStore
from runner.config.main import main
from runner.runs import read_run
from tests.whole.children import fork
from tests.whole.runs import compose, differences, end_of, rows_of

BEST = (
    "checkpoint.keep_best=1", "scheduler=constant", "evaluation.every.env_steps=300", "total_frames=2500",
    "checkpoint.best_metric=eval/length_mean", "checkpoint.best_mode=min",
)  # fmt: skip


def whole(config, folder):
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return end_of(config, folder), child.output()


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    folder = tmp_path_factory.mktemp("through") / "run"
    return folder, *whole(compose(*BEST), folder)


def names(folder):
    return sorted(path.name for path in (folder / "ckpt").iterdir())


def test_run_json_and_the_summary_name_the_checkpoint_of_the_best_evaluation(through):
    folder, _, told = through
    evaluated = [(float(row["eval/length_mean"]), int(row["env_steps"])) for row in rows_of(folder)
                 if row["eval/length_mean"] and int(row["env_steps"]) % 300 == 0]  # fmt: skip
    best = read_run(folder)["best"]
    assert best["checkpoint"] == f"ckpt/step-{best['env_steps']}"
    assert best["eval/length_mean"] == min(evaluated)[0]
    assert best["checkpoint"].removeprefix("ckpt/") in names(folder)
    assert f"best        eval/length_mean {best['eval/length_mean']:.1f} at env step" in told
    assert f"{best['checkpoint']} takes it" in told


@pytest.mark.parametrize("after", [600, 1500])
def test_killed_and_resumed_it_keeps_the_same(through, tmp_path, after):
    config, folder = compose(*BEST), tmp_path / "run"
    child = fork(config, folder)
    while not any(int(path.name[5:]) >= after for path in (folder / "ckpt").glob("step-*") if path.name[5:].isdigit()):
        assert not child.has_ended(0.0005), child.output()
    time.sleep(0.02)
    assert child.kill() == -signal.SIGKILL
    end, _ = whole(config, folder)
    assert differences(end, through[1]) == []
    assert names(folder) == names(through[0])
    assert read_run(folder)["best"] == read_run(through[0])["best"]


def test_a_finished_run_goes_on_from_its_best_which_is_then_the_newest(tmp_path, capsys):
    folder = tmp_path / "run"
    short = [
        "total_frames=900", "source.warmup=100", "source.capacity=500", "network.hidden=[8]", "logger=csv",
        "evaluation.every.env_steps=300", "evaluation.episodes=1", "evaluation.final_episodes=1",
        "checkpoint.keep_best=1", "checkpoint.every.env_steps=400", "tuned=null", "~hooks.progress_bar",
    ]  # fmt: skip
    assert main([*short, f"hydra.run.dir={folder}"]) == 0
    best = read_run(folder)["best"]["checkpoint"]
    taken, _ = CheckpointStore(folder).load(take=best.removeprefix("ckpt/"))
    capsys.readouterr()
    steps = taken["progress"]["env_steps"]
    assert main([f"resume={folder}/{best}", "optimizer.lr=1e-5", f"stop_after.env_steps={steps + 4}"]) == 0
    assert f"going on from {best.removeprefix('ckpt/')}" in capsys.readouterr().out
    _, manifest = CheckpointStore(folder).load()
    assert manifest["counters"]["env_steps"] == steps + 4
    rows = [int(row["env_steps"]) for row in rows_of(folder)]
    assert rows == sorted(rows)
    assert max(rows) == steps + 4


def test_a_checkpoint_that_is_not_there_or_damaged_is_refused_in_one_line(tmp_path, capsys):
    assert main([f"resume={tmp_path}/ckpt/step-7"]) == 2
    assert "there is no such folder" in capsys.readouterr().err
