from itertools import count

import pytest
import torch

from hooks.optimizer import OptimizerHook
from hooks.recorder import Recorder
from hooks.replay_buffer import ReplayBufferTrainer
from runner.builders import (
    make_collector_offpolicy,
    make_dqn_loss,
    make_evaluation,
    make_learner,
    make_replay_buffer,
    make_trainer,
)
from runner.learner.optimizers import adam
from runner.seeding import Streams
from tests.toys import environment, policy, same_tree, trainer


class Judge:
    """Stands where an evaluation does, with given returns; counts the calls."""

    def __init__(self, *returns, every=8):
        self.every, self.returns, self.calls = {"env_steps": every}, iter(returns), count()

    def run(self):
        next(self.calls)
        return self

    def metrics(self):
        return {"eval/return_mean": next(self.returns)}


def recorded(judge, total_frames=24):
    one, hook = trainer(total_frames), Recorder(judge)
    hook.register(one)
    seen = {}
    one.register_op("post_steps_log", lambda batch: seen.update({one.progress.env_steps: one.metrics.latest.copy()}))
    one.train()
    return hook, {step: latest.get("eval/return_mean") for step, latest in seen.items()}


@pytest.mark.pins("Recorder", excludes="the unit of the interval is not what its documentation says")
def test_evaluations_come_at_their_interval():
    _, seen = recorded(Judge(1.0, 2.0, 3.0))
    assert seen == {4: None, 8: 1.0, 12: 1.0, 16: 2.0, 20: 2.0, 24: 3.0}


def test_the_best_one_and_its_place_are_remembered():
    hook, _ = recorded(Judge(-5.0, -2.0, -3.0))
    assert hook.best == {"eval/return_mean": -2.0, "env_steps": 16}


def test_the_first_of_equals_is_the_best():
    hook, _ = recorded(Judge(4.0, 4.0, 4.0))
    assert hook.best["env_steps"] == 8


@pytest.mark.pins("Recorder")
def test_a_loaded_recorder_knows_what_was_best_and_when_it_is_due():
    one, _ = recorded(Judge(7.0), 8)
    other = Recorder(Judge(1.0, 2.0))
    other.load_state_dict(one.state_dict())
    resumed = trainer(16)
    resumed.progress.env_steps = resumed.progress.frames = 8
    other.register(resumed)
    resumed.train()
    assert other.best == {"eval/return_mean": 7.0, "env_steps": 8}
    assert next(other.evaluation.calls) == 1  # at 16, not at once


def value_learning(with_recorder):
    """A small run of value learning on CartPole; its state, its last evaluation and its weights."""
    streams = Streams(3)
    streams.seed_globals("networks")
    env = environment("CartPole-v1", 2, seed=3)
    acting = policy(env, epsilon=0.3, seed=3)
    networks = {"q": acting.network}
    source = make_replay_buffer(streams.torch("sampler"), capacity=500, batch_size=8, warmup=40)
    learner = make_learner(networks, make_dqn_loss(), adam)
    evaluation = make_evaluation(env, acting, streams, {"env_steps": 60}, episodes=2)
    hooks = {"replay": ReplayBufferTrainer(source), "optimizer": OptimizerHook(learner)}
    if with_recorder:
        hooks["recorder"] = Recorder(evaluation)
    one = make_trainer(make_collector_offpolicy(env, acting, 20), learner, source, 300, hooks=hooks)
    one.register_module("streams", streams)
    one.train()
    state = {name: one.state_dict()[name] for name in ("learner", "source", "collector", "streams")}
    return (
        state,
        one.metrics.latest.get("eval/return_mean"),
        torch.cat([p.flatten() for p in networks["q"].parameters()]),
    )


@pytest.mark.pins("Recorder")
def test_evaluation_does_not_change_training():
    (state, evaluated, weights), (without, not_evaluated, same_weights) = value_learning(True), value_learning(False)
    assert evaluated > 0
    assert not_evaluated is None
    assert torch.equal(weights, same_weights)
    assert same_tree(state, without)
