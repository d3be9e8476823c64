"""R7: whatever an environment does wrong is named in one line, costs nothing that was computed, or is mended."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from tests.campaign.env_faults import FAULTS, SHORT, TRAINING, Row, Scene, table
from tests.whole.children import ROOT
from tests.whole.runs import SHORT as SHORT_RUN

SEED = int(os.environ.get("HOOKLINE_CAMPAIGN_SEED", time.time_ns() % 10**6))
"""Of the random faults."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("env-faults"))


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[fault.name for fault in FAULTS])
def test_each_fault_once(scene, number):
    row = Row(FAULTS[number])
    if number % 3 == 0:
        scene.restarts_once(row)
    else:
        scene.raises(row, is_resumed=number % 3 == 1)
    assert row.problems == []


def run_py(folder, *words, seconds=120):
    """What ``python run.py`` says in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)


def test_a_real_process_ends_with_one_line_and_goes_on_when_told_to_restart(tmp_path):
    make = "+env.make={_target_: tests.envs.faulty.Faulty, kind: reward NaN, at: 280}"
    ended = run_py(tmp_path, *SHORT_RUN, *SHORT, make, "hydra.run.dir=run")
    assert ended.returncode == 1, ended
    words = rf"{TRAINING}the reward is nan; mend it .*; saved at env step (\d+); log: run/run.log"
    *_, told, go_on = ended.stderr.splitlines()
    named = re.fullmatch(words, told)
    assert named, ended.stderr
    assert re.fullmatch(r"go on       \S.* resume=run 'trust=\[tests\]'", go_on), go_on
    assert "Traceback" not in ended.stderr + ended.stdout
    assert "compile: trace" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()  # as runs are by default
    ended = run_py(tmp_path, "resume=run", "trust=[tests]", "env.on_error=restart", "env.max_restarts=7")
    assert ended.returncode == 0, ended
    assert f"going on from env step {named[1]} in run" in ended.stdout
    assert "made anew (1 of at most 7 times)" in ended.stderr


@pytest.mark.slow
def test_every_fault_is_named_and_nothing_is_lost(scene):
    rows = [Row(fault) for fault in FAULTS]
    for row in rows:
        scene.raises(row)
        scene.restarts_once(row)
        scene.restarts_in_vain(row)
    print(f"\n{table(rows)}")
    problems = [problem for row in rows for problem in row.problems]
    assert not problems, "\n".join([f"folders in {scene.folder}", *problems])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_an_environment_that_fails_now_and_then_is_learned_all_the_same(tmp_path, seed):
    chances = f"seed: {SEED + seed}, stall: 1e-4"
    options = ["env.on_error=restart", "env.max_restarts=10000", "env.step_timeout=1", f"seed={seed}", "logger=csv"]
    make = "+env.make={_target_: tests.envs.faulty.Unreliable, " + chances + "}"
    ended = run_py(tmp_path, "env=gym", "tuned=dqn/cartpole", make, *options, "hydra.run.dir=run", seconds=900)
    assert ended.returncode == 0, ended
    metrics = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    names = "eval/final_return_mean", "perf/env_restarts", "perf/env_cut_episodes"
    found = {name: metrics.get(name, 0) for name in names}
    print(f"\nseed {seed}, faults of seed {SEED + seed}: {found}")
    assert found["eval/final_return_mean"] >= 450
    assert found["perf/env_restarts"] >= 3
