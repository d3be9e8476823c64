"""Tuned settings reach what they promise: greedy returns of the final weights, on seeds used for nothing else."""

import statistics

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from tests.whole.runs import train


def final_return(*overrides):
    quiet = ["~hooks.progress_bar", "~hooks.recorder"]
    experiment = train(check(parse_arguments([*quiet, *overrides])).config)
    experiment.trainer.collector.shutdown()
    return float(experiment.evaluation.run("final_evaluation").returns.mean())


def returns_of(env, seeds, note):
    returns = [final_return("algo=dqn", f"env={env}", f"seed={seed}") for seed in seeds]
    note("note", f"{env}: final returns {[round(one, 1) for one in returns]}")
    return returns


@pytest.mark.slow
def test_cartpole_is_solved_by_four_of_five_seeds(record_property):
    returns = returns_of("cartpole", range(5), record_property)
    assert sum(one >= 475 for one in returns) >= 4
    assert statistics.mean(returns) >= 450


@pytest.mark.slow
def test_acrobot_reaches_minus_100_with_three_of_three_seeds(record_property):
    assert min(returns_of("acrobot", range(3), record_property)) >= -100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("env", "enough"), [("cartpole", 475), ("acrobot", -100)])
def test_distributions_reach_what_they_promise_with_three_of_three_seeds(env, enough, seed, record_property):
    found = final_return("algo=c51", f"env={env}", f"seed={seed}")
    record_property("note", f"c51 on {env}, seed {seed}: final return {found:.1f}")
    assert found >= enough


@pytest.mark.slow
def test_mountain_car_reaches_minus_130_with_two_of_three_seeds(record_property):
    assert sum(one >= -130 for one in returns_of("mountain_car", range(3), record_property)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("collector", "frames"), [("sync", 50_000), ("async", 80_000)])
def test_cartpole_is_solved_by_two_workers_with_three_of_three_seeds(collector, frames, record_property):
    settings = ["env=cartpole", f"collector={collector}", "env.num_envs=4", f"total_frames={frames}"]
    returns = [final_return(*settings, f"seed={seed}") for seed in range(3)]
    record_property("note", f"{collector}: final returns {[round(one, 1) for one in returns]}")
    assert min(returns) >= 475


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sac", "td3"])
def test_pendulum_reaches_minus_180_within_20_000_steps_with_three_of_three_seeds(algo, record_property):
    returns = [final_return(f"algo={algo}", "env=pendulum", f"seed={seed}") for seed in range(3)]
    record_property("note", f"{algo} on pendulum: final returns {[round(one, 1) for one in returns]}")
    assert min(returns) >= -180
