"""Tuned settings of on-policy learning reach what they promise: greedy returns of the final weights, of three seeds."""

import pytest

from tests.whole.test_learning import final_return

TAXI = (
    "algo=ppo", "env=taxi", "total_frames=100_000", "env.num_envs=8", "collector.frames_per_batch=1024",
    "source.batch_size=256", "optimizer.lr=1e-3",
)  # fmt: skip


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
@pytest.mark.parametrize("has_value", ["true", "false"])
def test_returns_with_and_without_a_baseline_within_300_000_steps(has_value, record_property):
    check(400, record_property, "algo=reinforce", "env=cartpole", f"network.has_value={has_value}")


@pytest.mark.slow
def test_masks_help(record_property):
    """To know which actions change nothing is worth more than half of the way to a taxi that drives well."""
    with_masks, without = (final_return(*TAXI, *more) for more in ((), ("env.transforms.mask=null",)))
    record_property("note", f"taxi: final returns {with_masks:.1f} with masks, {without:.1f} without")
    assert with_masks > without + 50
