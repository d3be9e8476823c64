"""Tuned settings of on-policy learning reach what they promise: greedy returns of the final weights, of three seeds."""

import pytest

from tests.whole.test_learning import final_return


def check(least, note, *overrides):
    settings = [*overrides, "evaluation.every.env_steps=1_000_000"]
    returns = [final_return(*settings, f"seed={seed}") for seed in range(3)]
    note("note", f"{' '.join(overrides)}: final returns {[round(one, 1) for one in returns]}")
    assert min(returns) >= least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "least"), [("cartpole", 475), ("acrobot", -90), ("pendulum", -250)]
)  # within 100,000, 300,000 and 300,000 env steps
def test_clipped_steps(env, least, record_property):
    check(least, record_property, "algo=ppo", f"env={env}")


@pytest.mark.slow
def test_actor_and_critic_within_300_000_steps(record_property):
    check(450, record_property, "algo=a2c", "env=cartpole")


@pytest.mark.slow
def test_actor_and_critic_over_shared_features_within_300_000_steps(record_property):
    check(450, record_property, "algo=a2c", "network=shared_features", "env=cartpole")


@pytest.mark.slow
@pytest.mark.parametrize("has_value", ["true", "false"])
def test_returns_with_and_without_a_baseline_within_300_000_steps(has_value, record_property):
    check(400, record_property, "algo=reinforce", "env=cartpole", f"network.has_value={has_value}")


@pytest.mark.slow
def test_a_taxi_that_knows_its_masks_drives_well_and_another_does_not(record_property):
    """The best mean is about 8 (Dietterich 2000); whoever delivers nobody gets -200."""
    settings = "algo=ppo", "env=taxi", "evaluation.every.env_steps=1_000_000", "seed=0"
    found, without = final_return(*settings), final_return(*settings, "env.transforms.mask=null")
    record_property("note", f"taxi: final returns {found:.1f} with masks, {without:.1f} without")
    assert found >= 6 > without
