"""The same seed is the same run, and looking at a run does not change it."""

import os

import pytest
import torch

from runner.config.assemble import assemble
from runner.spec import ConfigError
from tests.collectors.parts import family
from tests.whole.runs import compose, train, weights


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_two_runs_with_one_seed_end_with_the_same_bits_and_another_seed_differs():
    first, second, other = (weights(train(compose(f"seed={seed}"))) for seed in (3, 3, 4))
    assert same(first, second)
    assert not same(first, other)


def test_a_run_emptied_of_hooks_ends_with_bit_identical_weights():
    config = compose()
    watched = train(config)
    assert set(watched.hooks) > {"log_reward", "recorder"}  # there was something to take out
    assert same(weights(watched), weights(train({**config, "hooks": {}})))


def test_a_hook_of_learning_changes_the_weights():
    # The oracle of the test above can fail.
    assert not same(weights(train(compose())), weights(train(compose("learning=[off_policy,reward_normalizer]"))))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["~learning.optimizer"], "no hook moves the weights"),
        (["learning=reward_normalizer"], "no hook moves the weights"),
        (["~learning.replay_buffer"], "no hook feeds the source and draws from it"),
        (["~learning.update_weights", "collector=sync", "env.num_envs=2"], "no hook sends new weights to the worker"),
        (["~learning.normalize_observations", "network.normalize_observations=true"], "no hook shows observations"),
    ],
    ids=str,
)
def test_a_run_that_lacks_a_hook_which_its_learning_needs_is_refused(overrides, words):
    before = family(os.getpid())
    with pytest.raises(ConfigError, match=words):
        assemble(compose(*overrides))
    assert set(family(os.getpid())) <= set(before)


def test_a_run_by_two_processes_ends_with_the_weights_of_one_by_none():
    environments = ("env.num_envs=4", "collector.frames_per_batch=20")
    alone, shared = train(compose(*environments)), train(compose("collector=sync", *environments))
    shared.trainer.collector.shutdown()
    assert same(weights(alone), weights(shared))


def test_more_environments_are_deterministic_too():
    first, second = (weights(train(compose("env.num_envs=5", "source.n_step=3"))) for _ in range(2))
    assert same(first, second)
