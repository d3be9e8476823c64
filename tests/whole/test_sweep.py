"""A sweep from the real command line: folders, MLflow runs, objectives, bit-equality with single runs, failures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.checkpoint.store import CheckpointStore
from runner.runs import read_run
from tests.whole.runs import SHORT, differences, rows_of, state_of

RUN = Path(__file__).resolve().parents[2] / "run.py"
TINY = [text for text in SHORT if not text.startswith(("logger", "total_frames"))] + ["total_frames=600"]


def hookline(folder, *overrides):
    command = [sys.executable, str(RUN), *overrides]
    return subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    done = hookline(folder, "-m", *TINY, "seed=0,1,2", "optimizer.lr=1e-3,5e-4")
    assert done.returncode == 0, done.stdout + done.stderr
    (root,) = (folder / "outputs" / "dqn-cartpole").iterdir()
    return folder, sorted(path for path in root.iterdir() if path.is_dir()), done.stdout


def test_six_jobs_leave_six_finished_folders(sweep):
    _, jobs, _ = sweep
    assert [job.name for job in jobs] == ["0-s0", "1-s0", "2-s1", "3-s1", "4-s2", "5-s2"]
    assert {read_run(job)["status"] for job in jobs} == {"done"}


def test_six_jobs_are_six_runs_in_mlflow_with_their_parameters(sweep):
    from mlflow import MlflowClient

    folder, jobs, _ = sweep
    client = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'dqn-cartpole'")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {read_run(job)["mlflow_run_id"] for job in jobs}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    settings = sorted((run.data.params["seed"], run.data.params["optimizer.lr"]) for run in runs.values())
    assert settings == [(seed, lr) for seed in "012" for lr in ("0.0005", "0.001")]


def test_the_table_at_the_end_names_every_job_with_its_return(sweep):
    _, jobs, output = sweep
    for job in jobs:
        final = read_run(job)["metrics"]["eval/final_return_mean"]
        (line,) = [line for line in output.splitlines() if line.rstrip().endswith(job.name) and "done" in line]
        assert f"{final:.1f}" in line


def test_a_job_is_bit_equal_to_the_same_run_alone(sweep):
    folder, jobs, _ = sweep
    done = hookline(folder, *TINY, "seed=1", "optimizer.lr=5e-4", "logger=csv", "hydra.run.dir=alone")
    assert done.returncode == 0, done.stderr
    in_sweep, alone = state_of(jobs[3]), state_of(folder / "alone")
    assert set(in_sweep["metrics"].pop("loggers")) > set(alone["metrics"].pop("loggers"))
    assert differences(in_sweep, alone) == []
    assert rows_of(jobs[3]) == rows_of(folder / "alone")


def test_one_failing_job_is_reported_at_once_while_the_others_finish(tmp_path):
    # Only the environment itself says what its actions are, which is found out when the job is built.
    done = hookline(tmp_path, "-m", *TINY, "logger=csv", "env.id=CartPole-v1,Pendulum-v1,Acrobot-v1")
    assert done.returncode == 1
    assert "job 1" in done.stderr
    assert "action values need discrete actions" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    finished = [path.parent for path in tmp_path.rglob("run.json") if read_run(path.parent)["status"] == "done"]
    assert len(finished) == 2
    assert all(CheckpointStore(run=folder).load()[0]["progress"]["env_steps"] == 600 for folder in finished)
