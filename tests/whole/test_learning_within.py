"""What agents learn that remember, that meet another task in each episode, or that learn a model of the environment."""

from functools import cache

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from tests.whole.runs import train
from tests.whole.test_learning import final_return

PULLS = 20


@cache
def best_return(paid, failed, other_paid, other_failed, left):
    """Of two arms with chances drawn from [0, 1], by dynamic programming over what was seen of each."""
    if not left:
        return 0.0

    def pull(first, second):
        (wins, losses), chance = first, (first[0] + 1) / (sum(first) + 2)
        good = 1 + best_return(wins + 1, losses, *second, left - 1)
        return chance * good + (1 - chance) * best_return(wins, losses + 1, *second, left - 1)

    one, other = (paid, failed), (other_paid, other_failed)
    return max(pull(one, other), pull(other, one))


def test_the_best_return_of_one_and_of_two_pulls_by_hand():
    assert best_return(0, 0, 0, 0, 1) == 0.5
    # The first pull pays with 1/2; then the same arm pays with 2/3, else the other one with 1/2.
    assert best_return(0, 0, 0, 0, 2) == pytest.approx(0.5 * (1 + 2 / 3) + 0.5 * 0.5)


@pytest.mark.slow
def test_an_agent_that_remembers_balances_without_seeing_velocities(record_property):
    settings = ["algo=ppo", "env=cartpole_masked", "network=actor_critic_recurrent"]
    returns = [final_return(*settings, f"seed={seed}") for seed in range(3)]
    record_property("note", f"without velocities: final returns {[round(one, 1) for one in returns]}")
    assert min(returns) >= 400


@pytest.mark.slow
def test_an_agent_that_remembers_finds_out_which_arm_pays(record_property):
    settings = ["algo=ppo", "env=bandit", "network=actor_critic_recurrent", "evaluation.final_episodes=1000"]
    returns = [final_return(*settings, f"seed={seed}") for seed in range(3)]
    best = best_return(0, 0, 0, 0, PULLS)
    record_property("note", f"two arms: final returns {[round(one, 2) for one in returns]} of at best {best:.2f}")
    assert min(returns) >= 0.9 * best


def steps_to(level, *overrides):
    """After how many env steps an evaluation, one in each 100 steps, shows at least ``level``."""
    stop = ["hooks=[default,early_stopping]", f"hooks.early_stopping.threshold={level}", "~hooks.progress_bar"]
    stop += ["hooks.early_stopping.patience=1000", "evaluation.every.env_steps=100", "evaluation.episodes=30"]
    trainer = train(check(parse_arguments([*stop, *overrides])).config).trainer
    assert trainer.stop_reason != "total_frames"
    return trainer.progress.env_steps


@pytest.mark.slow
def test_a_model_of_the_environment_saves_two_of_three_steps(record_property):
    for seed in range(3):
        with_model, without = (
            steps_to(-200, f"algo={algo}", "env=pendulum", f"seed={seed}") for algo in ("dyna", "sac")
        )
        record_property("note", f"seed {seed}: -200 after {with_model} env steps, without a model after {without}")
        assert 3 * with_model <= without
