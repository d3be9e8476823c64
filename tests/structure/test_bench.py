"""That scripts/bench.py compares equal work, counts what it says it counts, and says what is missing."""

import csv
import inspect
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from runner.config.arguments import parse_arguments
from runner.config.check import check
from scripts.benchmark import learner, rounds, setup, versus
from scripts.benchmark.meter import Order, Work
from tests.structure.sources import ROOT

CART_POLE = ("every10", "every1")


def adams_own(config):
    adam = inspect.signature(torch.optim.Adam).parameters
    assert config["optimizer"]["_target_"] == "runner.learner.optimizers.adam"
    names = ("betas", "eps", "weight_decay")
    return {name: config["optimizer"][name] for name in names} == {name: adam[name].default for name in names}


@pytest.mark.parametrize("name", ["sac", "td3"])
def test_a_recipe_for_vectors_and_the_work_of_the_peers_are_the_same(name):
    case = versus.CASES[name]
    config, work = check(parse_arguments([f"experiment={case.experiment}"])).config, case.work
    source, collector = config["source"], config["collector"]
    assert (config["env"]["id"], config["network"]["hidden"], config["network"]["members"]) == (
        work.env_id, work.hidden, 2,
    )  # fmt: skip
    assert (collector["frames_per_batch"], source["optim_steps"], source["n_step"]) == (work.train_every, 1, 1)
    assert (source["batch_size"], source["capacity"]) == (work.batch_size, work.buffer_size)
    assert (config["optimizer"]["lr"], config["loss"]["gamma"]) == (work.learning_rate, work.gamma)
    assert (config["target_updater"]["rate"], adams_own(config)) == (0.005, True)
    assert config["scheduler"] == {"_target_": "runner.schedules.Constant"}
    every = {stage: options["every"] for stage, options in config["learner"]["optimizations"].items()}
    assert every == ({"critic": None, "actor": 2} if name == "td3" else dict.fromkeys(["critic", "actor", "alpha"]))


@pytest.mark.parametrize("case", [versus.CASES[name] for name in CART_POLE], ids=CART_POLE)
def test_a_recipe_and_the_work_of_the_peers_are_the_same(case):
    config, work = check(parse_arguments([f"experiment={case.experiment}"])).config, case.work
    source, loss, exploration = config["source"], config["loss"], config["exploration"]
    ours = Work(
        seed=work.seed,
        env_steps=work.env_steps,
        hidden=config["network"]["hidden"],
        batch_size=source["batch_size"],
        train_every=config["collector"]["frames_per_batch"] // source["optim_steps"],
        learning_starts=source["warmup"],
        buffer_size=source["capacity"],
        learning_rate=config["optimizer"]["lr"],
        gamma=loss["gamma"],
        target_every=config["target_updater"]["update_frequency"] * config["collector"]["frames_per_batch"],
        exploration_fraction=exploration["env_steps"] / config["total_frames"],
        final_epsilon=exploration["end"],
    )
    assert ours == work
    assert (source["n_step"], source["gamma"], loss["double"], loss["loss_function"]) == (1, 0.99, False, "l2")
    assert (exploration["start"], config["collector"]["init_random_frames"]) == (1.0, 0)
    assert config["scheduler"] == {"_target_": "runner.schedules.Constant"}
    assert adams_own(config)


def test_the_on_policy_recipe_and_the_work_of_its_peer_are_the_same():
    case = versus.CASES["ppo"]
    config, work = check(parse_arguments([f"experiment={case.experiment}"])).config, case.work
    source, loss = config["source"], config["loss"]
    sizes = config["env"]["num_envs"], config["collector"]["frames_per_batch"], source["batch_size"], source["epochs"]
    assert sizes == (work.num_envs, work.train_every, work.batch_size, work.epochs) == (4, 512, 128, 4)
    assert (config["network"]["hidden"], config["network"]["shared"]) == (work.hidden, False)
    assert (config["optimizer"]["lr"], config["optimizer"]["eps"], loss["gamma"]) == (
        work.learning_rate,
        1e-5,
        work.gamma,
    )
    assert (loss["clip_epsilon"], loss["entropy_coeff"], config["learner"]["clip"]) == (0.2, 0.01, 0.5)
    assert config["scheduler"]["_target_"] == "runner.schedules.Linear"


def test_a_measured_run_counts_its_window_and_its_returns(tmp_path):
    work = Work(3, 600, [8], batch_size=8, train_every=10, learning_starts=100, buffer_size=500)
    extra = ["experiment=cleanrl_dqn_cartpole", "network.hidden=[8]", "checkpoint.every.env_steps=100"]
    extra += [
        "source.warmup=100",
        "evaluation.final_episodes=2",
        "logger=csv",
        "log_every.env_steps=600",
        "hooks.log_reward.window=20",
    ]
    order = Order(work, str(tmp_path / "result.json"), time.time(), extra)
    command = [sys.executable, "-m", "scripts.benchmark.peers.hookline", order.to_text()]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["env_steps"] == 300
    assert result["cpu"] > 0
    assert result["wall"] > 0
    (table,) = (tmp_path / "outputs").glob("*/*/metrics.csv")
    with table.open() as file:
        row = next(csv.DictReader(file))
    assert result["train_return"] == pytest.approx(float(row["train/return_mean"]), rel=0.3)  # 60 env steps fewer


def test_two_variants_take_turns_and_each_save_is_clocked(tmp_path):
    common = ["experiment=cleanrl_dqn_cartpole", "network.hidden=[8]", "source.warmup=100", "logger=csv"]
    variants = [[*common, "checkpoint.every.env_steps=1000000"], [*common, "checkpoint.every.env_steps=100"]]
    order = json.dumps({"variants": variants, "warm_up": 200, "env_steps": 200, "pairs": 3})
    command = [sys.executable, "-m", "scripts.benchmark.sides", str(tmp_path / "result.json"), order]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert [len(side) for side in result["stretches"]] == [3, 3]
    assert all(stretch["wall"] > 0 and stretch["cpu"] > 0 for side in result["stretches"] for stretch in side)
    assert [len(save_ms) for save_ms in result["save_ms"]] == [0, 6]


def test_a_peer_without_its_environment_is_named_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup, "VENVS", tmp_path)
    settings = versus.Settings(["sb3"], rounds=1)
    with pytest.raises(rounds.Failed, match=r"--setup --only sb3"):
        versus.compare(versus.CASES["every10"], settings)


def test_a_ratio_above_one_says_that_we_are_faster():
    ours = [{"cpu_us": 50.0}, {"cpu_us": 100.0}, {"cpu_us": 50.0}]
    theirs = [{"cpu_us": 100.0}, {"cpu_us": 300.0}, {"cpu_us": 500.0}]
    assert versus.ratios(ours, theirs, "cpu_us") == [2.0, 3.0, 10.0]


def test_a_slowdown_of_the_machine_between_rounds_leaves_the_median_ratio():
    steady = versus.ratios([{"wall": 1.0}] * 3, [{"wall": 2.0}] * 3, "wall")
    slowed = versus.ratios(
        [{"wall": 1.0}, {"wall": 3.0}, {"wall": 1.0}], [{"wall": 2.0}, {"wall": 6.0}, {"wall": 2.0}], "wall"
    )
    assert steady == slowed


@pytest.mark.parametrize("work", learner.works(), ids=lambda work: work.title.partition(",")[0])
def test_a_learner_and_a_hand_written_loop_do_the_same_work(work):
    updates = learner.sides(work)  # refuses what computes something else
    times = {name: [learner.clock(update, 1)] * 2 for name, update in updates.items()}
    assert len(learner.report(times).splitlines()) == 1 + len(updates)


def test_work_that_differs_is_not_compared(monkeypatch):
    work = learner.works()[0]
    other = work._replace(loss_of=lambda *inputs: 2 * learner.values_by_hand(*inputs))
    with pytest.raises(AssertionError, match="computes something else than by hand"):
        learner.sides(other)
