"""Prioritized replay and three-step returns, by the command line's own settings, solve CartPole."""

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from tests.whole.runs import train


def final_return(seed):
    quiet = ["~hooks.progress_bar", "~hooks.recorder"]
    overrides = ["algo=dqn", "env=cartpole", "source=prioritized", f"seed={seed}"]
    config = check(parse_arguments([*quiet, *overrides])).config
    assert (config["source"]["sampler"], config["source"]["n_step"]) == ("prioritized", 3)
    assert config["total_frames"] == 50_000
    return float(train(config).evaluation.run("final_evaluation").returns.mean())


@pytest.mark.slow
def test_cartpole_is_solved_by_three_of_three_seeds(record_property):
    returns = [final_return(seed) for seed in range(3)]
    record_property("note", f"prioritized, three-step: final returns {[round(one, 1) for one in returns]}")
    assert min(returns) >= 475
