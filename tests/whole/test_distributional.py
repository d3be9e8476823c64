"""Whole runs that learn distributions over values: each way of computing, drawing, playing and going on."""

import logging
import signal

import pytest
import torch

from runner.config.assemble import assemble
from runner.spec import ConfigError
from tests.whole.children import fork
from tests.whole.runs import compose, differences, end_of, train, weights

C51 = ("algo=c51", "network.n_atoms=11", "network.v_min=0", "network.v_max=20", "source.n_step=3")


def short(*overrides):
    return compose(*C51, "total_frames=800", "evaluation.final_episodes=1", *overrides)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_recorded_updates_are_those_of_autograd_to_the_bit(caplog):
    with caplog.at_level(logging.INFO):
        recorded = train(short("compile=trace"))
    assert "left to autograd" not in caplog.text
    assert same(weights(recorded), weights(train(short("compile=none"))))
    assert not same(weights(recorded), weights(train(short("loss.gamma=0.9"))))  # the comparison can fail


@pytest.mark.slow
def test_compiled_updates_are_compiled(caplog):
    config = short("compile=update", "total_frames=400")
    with caplog.at_level(logging.WARNING):
        compiled = train(config)
    assert "is not compiled" not in caplog.text
    plain = weights(train({**config, "compile": "none"}))
    for name, value in weights(compiled).items():  # 10 updates
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=1e-4)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    config = compose(*C51, "source=prioritized", *("source.warmup=300", "source.capacity=1000", "total_frames=1500"))
    whole, killed = fork(config, tmp_path / "whole"), fork(config, tmp_path / "killed")
    while not (tmp_path / "killed" / "ckpt" / "step-500").exists():
        assert not killed.has_ended(0.0005), killed.output()
    assert killed.kill() == -signal.SIGKILL
    assert fork(config, tmp_path / "killed").wait() == 0
    assert whole.wait() == 0, whole.output()
    assert differences(*(end_of(config, tmp_path / name) for name in ("killed", "whole"))) == []


def test_priorities_are_the_divergences():
    found = train(short("source=prioritized", "source.warmup=300", "source.capacity=1000"))
    tree = found.source.sampler.tree
    batch = found.source.sample()
    drawn = tree.find(torch.linspace(0, 0.999, 50, dtype=torch.float64).numpy())
    assert len({*tree.numbers[drawn]}) > 20  # not what new transitions are given
    assert not torch.equal(batch["importance_weight"], torch.ones(32))


@pytest.mark.parametrize("playing", [[], ["collector=sync", "env.num_envs=2"]], ids=["here", "in processes"])
def test_closed_doors_are_left_alone(playing):
    # The environment raises where an action is taken that cannot be; by what the network says, and at random.
    doors = "+env.make={_target_: tests.envs.masked.SaysSo}"
    found = train(short("env=gym", doors, "exploration.end=0.3", "exploration.env_steps=500", *playing))
    assert found.evaluation.run().returns.mean() > 0
    found.trainer.collector.shutdown()


def test_pictures():
    found = assemble(short("network=q_dist_cnn", "env=pixel_cartpole"))
    assert found.networks["q_dist"].distribution.size == 22
    found.environment.close()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["network=q_mlp"], "this network says none: network=q_dist, or q_dist_cnn"),
        (["loss=dqn"], "DQNLoss works on one called q; this choice has q_dist"),
        (["network.v_min=20"], "v_min=20 and v_max=20"),
        (["network.n_atoms=1"], "n_atoms=1"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(overrides, words):
    settings = [word for word in C51 if not (overrides == ["network=q_mlp"] and word.startswith("network."))]
    with pytest.raises((ConfigError, ValueError), match=words):
        assemble(compose(*settings, *overrides))
