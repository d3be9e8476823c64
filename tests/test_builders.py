from functools import partial

import pytest
import torch
from torch import nn

from hooks.optimizer import OptimizerHook
from hooks.replay_buffer import ReplayBufferTrainer
from runner.builders import (
    EpsilonGreedy,
    make_collector_offpolicy,
    make_dqn_loss,
    make_environment,
    make_evaluation,
    make_learner,
    make_policy,
    make_q_network,
    make_replay_buffer,
    make_target_updater,
    make_trainer,
)
from runner.learner.module import ModuleLoss
from runner.learner.optimizers import adam
from runner.learner.targets import FixedTarget, PolyakTarget, TrivialTarget
from runner.metrics import Metrics
from runner.seeding import Streams
from runner.spec import Progress
from tests.toys import RewardModel, Rows, Tape, collector, same_tree, trainer


def whole_run(seed, total_frames=600, hooks=None):
    """Every builder at work on CartPole, as a reader of the README would put them together."""
    streams = Streams(seed)
    streams.seed_globals("networks")
    env = make_environment(streams=streams, id="CartPole-v1", num_envs=2)
    networks = make_q_network(env.spec, [16], "relu")
    exploration = EpsilonGreedy(streams.numpy("exploration"), env.spec, start=1.0, end=0.1, env_steps=300)
    acting = make_policy(networks, env.spec, exploration)
    source = make_replay_buffer(streams.torch("sampler"), capacity=400, batch_size=16, warmup=100)
    learner = make_learner(networks, make_dqn_loss(), partial(adam, lr=1e-2), target_updater=make_target_updater(10))
    one = make_trainer(
        make_collector_offpolicy(env, acting, 10),
        learner,
        source,
        total_frames,
        hooks={"replay": ReplayBufferTrainer(source), "optimizer": OptimizerHook(learner), **(hooks or {})},
    )
    one.train()
    evaluation = make_evaluation(env, acting, streams, {"env_steps": 100}, episodes=2, final_episodes=4)
    return one, evaluation


def test_the_builders_make_a_run_that_learns():
    one, evaluation = whole_run(0)
    # Batches of 10: the warm-up ends with the 10th of 60, which is the first to be updated on.
    assert (one.progress.env_steps, one.progress.updates) == (600, 51)
    assert one.learner.modules["default"].networks["q"].target._updates == 51
    assert evaluation.run("final_evaluation").returns.shape == (4,)


def test_one_seed_gives_the_same_run_bit_for_bit_and_another_does_not():
    first, again, other = (whole_run(seed)[0].learner.state_dict() for seed in (1, 1, 2))
    assert same_tree(first, again)
    assert not same_tree(first, other)


def test_hooks_that_only_look_do_not_change_the_run():
    plain, watched = whole_run(1)[0], whole_run(1, hooks={"tape": Tape()})[0]
    assert same_tree(plain.learner.state_dict(), watched.learner.state_dict())


def test_hooks_are_registered_in_their_order_under_their_names():
    one, _ = whole_run(0, total_frames=10)
    assert list(one.state_dict())[-2:] == ["replay", "optimizer"]


@pytest.mark.pins("Logger")
def test_metrics_of_a_trainer_reach_the_loggers():
    rows, other = Rows(), trainer()
    one = make_trainer(
        other.collector, other.learner, other.source, 8, loggers=[rows], log_every={"batches": 1}, frame_skip=2
    )
    one.train()
    assert [(row["env_steps"], row["frames"]) for row in rows.rows] == [(4, 8)]


def test_metrics_may_be_made_before():
    metrics, other = Metrics(), trainer()
    assert make_trainer(other.collector, other.learner, other.source, 8, metrics=metrics).metrics is metrics


@pytest.mark.parametrize(
    ("given", "kind"), [({}, TrivialTarget), ({"update_frequency": 5}, FixedTarget), ({"rate": 0.1}, PolyakTarget)]
)
def test_a_target_is_chosen_by_its_parameter(given, kind):
    target = make_target_updater(**given)
    assert type(target) is kind
    assert {name: getattr(target, name) for name in given} == given


def test_a_target_is_copied_or_averaged_not_both():
    with pytest.raises(ValueError, match="not both"):
        make_target_updater(update_frequency=5, rate=0.1)


def test_the_target_follows_what_the_loss_bootstraps_from():
    networks = {"q": nn.Linear(2, 2), "other": nn.Linear(2, 2)}
    learner = make_learner(networks, make_dqn_loss(), adam, target_updater=FixedTarget(3))
    wrapped = learner.modules["default"].networks
    assert type(wrapped["q"].target) is FixedTarget
    assert wrapped["q"].target.model is not networks["q"]
    assert wrapped["other"].target.model is networks["other"]


def test_two_learners_do_not_share_a_target():
    target = FixedTarget(3)
    one, other = (make_learner({"q": nn.Linear(2, 2)}, make_dqn_loss(), adam, target_updater=target) for _ in range(2))
    targets = [part.modules["default"].networks["q"].target for part in (one, other)]
    assert targets[0] is not targets[1]
    assert not hasattr(target, "model")


def test_one_optimizer_has_the_parameters_of_all_networks():
    networks = {"a": RewardModel(), "b": RewardModel()}
    learner = make_learner(networks, ModuleLoss(), adam)
    (optimization,) = learner.modules["default"].optimizations
    expected = [parameter for network in networks.values() for parameter in network.parameters()]
    assert [id(one) for one in optimization.parameters] == [id(one) for one in expected]


def test_options_of_the_learner_reach_its_optimization():
    learner = make_learner(
        {"loss_module": RewardModel()},
        ModuleLoss(),
        adam,
        clip=2.0,
        clip_by="norm",
        loss_weights={"model": 3.0},
        update_every=4,
        non_finite="skip",
    )
    (one,) = learner.modules["default"].optimizations
    assert (one.clip.max, one.clip.by, one.every, one.non_finite) == (2.0, "norm", 4, "skip")
    assert one.loss_weights == {"model": 3.0}


@pytest.mark.pins("make_replay_buffer")
def test_the_replay_buffer_has_the_steps_and_the_discount_it_was_given():
    several = make_replay_buffer(n_step=3, gamma=0.5)
    assert (several.n, several.gamma) == (3, 0.5)


def test_the_loss_has_the_parameters_it_was_given():
    loss = make_dqn_loss(0.9, False, "l2")
    assert (loss.hyper_parameters["gamma"], loss.double, loss._function) == (0.9, False, torch.nn.functional.mse_loss)


def test_the_collector_counts_for_whoever_asks():
    progress = Progress()
    assert collector(progress=progress).progress is progress
