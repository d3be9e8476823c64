"""``make_trainer`` by the names of the trainer page: what it registers, checkpoints and refuses."""

import pytest
import torch
from torch import nn

from hooks.log_reward import LogReward
from hooks.recorder import Recorder
from runner.builders import (
    make_dqn_loss,
    make_learner,
    make_mixture,
    make_replay_buffer,
    make_target_updater,
    make_trainer,
)
from runner.learner.gradients import Clip
from runner.learner.module import ModuleLoss
from runner.learner.optimizers import adam
from runner.learner.targets import FixedTarget, PolyakTarget, TrivialTarget
from runner.metrics import Metrics
from runner.schedules import Cosine
from runner.spec import Progress
from runner.trainer import BatchSource
from runner.trainer_builder import TrainerOptions
from tests.toys import RewardModel, Rows, collector, environment, policy, same_tree


def made(total_frames=40, **options):
    torch.manual_seed(0)
    return make_trainer(collector(frames_per_batch=4), total_frames=total_frames, loss_module=RewardModel(), **options)


def optimization(one):
    (found,) = one.learner.optimizations()
    return found


def hooks_of(one):
    own = {"progress", "collector", "learner", "source", "metrics", "log_every", "checkpoint", "stop", "unfinished"}
    return [name for name in one.state_dict() if name not in own]


@pytest.mark.pins("make_trainer")
def test_defaults_are_those_of_the_page():
    one = made()
    own = optimization(one)
    assert type(own.optimizer).__name__ == "Adam"
    assert (own.lr, own.optimizer.param_groups[0]["weight_decay"]) == (3e-4, 0)
    assert (own.clip.max, own.clip.by) == (1000.0, "value")
    assert isinstance(own.schedule, Cosine)
    assert own.schedule.duration == 40
    assert str(one.log_every) == "every 10000 frames"
    assert isinstance(one.source, BatchSource)
    assert one.source.optim_steps() == 500


@pytest.mark.pins("make_trainer", excludes="Adam's betas are forced to (0, 0.9)")
def test_betas_are_those_of_adam():
    assert optimization(made()).optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.pins("make_trainer")
@pytest.mark.parametrize(("name", "kind"), [("adam", "AdamW"), ("sgd", "SGD"), ("adamax", "Adamax")])
def test_optimizer_rate_decay_and_clip_can_be_chosen(name, kind):
    one = made(optimizer=name, lr=0.5, weight_decay=0.1, lr_scheduler="", clip_grad_norm=True, clip_norm=2.0)
    own = optimization(one)
    group = own.optimizer.param_groups[0]
    assert (type(own.optimizer).__name__, group["lr"], group["weight_decay"]) == (kind, 0.5, 0.1)
    assert (own.clip.max, own.clip.by, own.schedule) == (2.0, "global_norm", None)
    assert optimization(made(clip_norm=None)).clip is None


@pytest.mark.pins("make_trainer", excludes="nothing that it registers is in a checkpoint")
@pytest.mark.parametrize("replaying", [False, True])
def test_all_that_is_registered_is_saved_and_a_resumed_run_is_the_same(replaying, tmp_path):
    def one(total_frames, file):
        options = {} if replaying else {"optim_steps_per_batch": 3, "batch_size": 2}
        if replaying:
            options["replay_buffer"] = make_replay_buffer(torch.Generator().manual_seed(3), capacity=100, batch_size=8)
        target = PolyakTarget(0.1)
        target.init(RewardModel())
        acting = policy(environment())
        return made(
            total_frames, normalize_rewards_online=True, save_trainer_file=tmp_path / file, lr_scheduler="", lr=0.1,
            policy_exploration=acting, target_net_updater=target, **options,
        )  # fmt: skip

    through, first = one(40, "through"), one(20, "first")
    through.train()
    first.train()
    resumed = one(40, "first")
    resumed.load_from_file()
    resumed.train()
    names = hooks_of(through)
    sampled = "replay_buffer" if replaying else "batch_sub_sampler"
    listed = [sampled, "reward_normalizer", "update_weights", "log_reward", "count_frames_log", "target_net_updater"]
    assert [name for name in names if name != "clear_cuda_cache"] == [*listed, "policy_exploration"]
    for name in (*names, "learner", "source"):
        assert same_tree(resumed.state_dict()[name], through.state_dict()[name]), name
    assert resumed.progress.updates == through.progress.updates == (10 if replaying else 30)


@pytest.mark.pins("make_trainer")
def test_selected_keys_are_what_is_stored_and_normalized():
    source = make_replay_buffer(capacity=100, batch_size=8)
    keys = ["observation", "action", *(["next", name] for name in ("observation", "reward", "terminated", "done"))]
    one = made(selected_keys=keys, replay_buffer=source)
    one.train()
    assert hooks_of(one)[0] in ("select_keys", "clear_cuda_cache")
    assert "log_reward" not in hooks_of(one)  # there are no returns to log any more
    assert one.progress.env_steps == 40


def test_rewards_are_normalized_as_asked():
    one = made(normalize_rewards_online=True, normalize_rewards_online_scale=2.0, normalize_rewards_online_decay=0.5)
    (hook,) = (part for part in one._modules.values() if type(part).__name__ == "RewardNormalizer")
    assert (hook.scale, hook.decay) == (2.0, 0.5)


def summing(gamma, n_step=3):
    return make_replay_buffer(capacity=100, n_step=n_step, gamma=gamma)


def mixed(*sources):
    names = [str(index) for index in range(len(sources))]
    return make_mixture(
        dict(zip(names, sources, strict=True)), dict.fromkeys(names, 1 / len(names)), batch_size=8 * len(names)
    )


def normalizer_over(source):
    return made(normalize_rewards_online=True, replay_buffer=source)._modules["reward_normalizer"]


def test_rewards_are_normalized_with_the_discount_of_the_sources():
    assert normalizer_over(summing(0.8)).gamma == 0.8
    assert normalizer_over(mixed(summing(0.9), summing(0.9))).gamma == 0.9
    assert normalizer_over(mixed(summing(0.9), summing(0.5, n_step=1))).gamma == 0.9
    with pytest.raises(ValueError, match=r"different gamma: 0\.8, 0\.9"):
        normalizer_over(mixed(summing(0.9), mixed(summing(0.8))))


def test_the_seed_says_which_parts_updates_see():
    def state(torch_seed, **options):
        playing = collector(frames_per_batch=4)
        torch.manual_seed(torch_seed)
        one = make_trainer(playing, total_frames=40, loss_module=RewardModel(), **options)
        return one.state_dict()["batch_sub_sampler"]["generator"]

    assert torch.equal(state(1), state(1))
    assert not torch.equal(state(1), state(2))
    assert torch.equal(state(1, seed=3), state(2, seed=3))


def test_each_update_sees_stretches_as_asked():
    one, shapes = made(batch_size=4, sub_traj_len=2, optim_steps_per_batch=1), []
    one.register_op("post_loss", lambda sub_batch: shapes.append(sub_batch.shape))
    one.train()
    assert set(shapes) == {(2, 2)}


@pytest.mark.pins("make_trainer", excludes="evaluates twice at build, and throws the results away")
def test_recorder_and_loggers_are_registered_and_nothing_is_played_at_build():
    class Judge:
        every = {"env_steps": 20}  # noqa: RUF012
        calls = 0

        def run(self):
            self.calls += 1
            return self

        def metrics(self):
            return {"eval/return_mean": 1.0}

    judge, rows, more = Judge(), Rows(), Rows()
    one = made(recorder=Recorder(judge), logger=rows, loggers=[more], log_interval=20, optim_steps_per_batch=1)
    assert judge.calls == 0
    one.train()
    assert judge.calls == 2
    assert [row["frames"] for row in rows.rows] == [row["frames"] for row in more.rows] == [20, 40]


@pytest.mark.pins("make_trainer", excludes="without a configuration it crashes")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optimizer": "lion"}, "optimizer='lion': there are adam, sgd, adamax"),
        ({"lr_scheduler": "linear"}, "there are cosine, and '' for none"),
        ({"lr": 0}, "lr=0 must be > 0"),
        ({"batch_size": 5}, "batch_size=5: the collector's batches have 4 steps"),
        ({"replay_buffer": BatchSource(1), "source": BatchSource(1)}, "two names of one thing"),
        ({"replay_buffer": make_replay_buffer(), "batch_size": 5}, r"make_replay_buffer\(batch_size=...\)"),
        ({"replay_buffer": make_replay_buffer(), "optim_steps_per_batch": 5}, r"make_replay_buffer\(optim_steps=...\)"),
        ({"replay_buffer": make_replay_buffer(), "sub_traj_len": 5}, "goes without a replay buffer"),
        ({"selected_keys": "observation"}, "keys is a list"),
        ({"metrics": Metrics(), "logger": Rows()}, "metrics has loggers of its own"),
        ({"metrics": Metrics(), "loggers": [Rows()]}, "metrics has loggers of its own"),
        ({"hooks": {"log_reward": LogReward()}}, "log_reward is registered already; give yours another name"),
        ({"clip_norm": -1.0}, "the bound must be > 0"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        made(**given)


def test_a_learner_has_its_own_settings():
    learner = make_learner({"loss_module": RewardModel()}, ModuleLoss(), adam)
    with pytest.raises(ValueError, match="lr, batch_size: go with a loss_module"):
        make_trainer(collector(), learner, BatchSource(1), 8, lr=1.0, batch_size=3)
    with pytest.raises(ValueError, match="either a learner or a loss_module"):
        make_trainer(collector(), total_frames=8)
    with pytest.raises(ValueError, match="either a learner or a loss_module"):
        make_trainer(collector(), learner, total_frames=8, loss_module=RewardModel())
    with pytest.raises(ValueError, match="needs total_frames"):
        make_trainer(collector(), learner)


def test_options_can_be_listed():
    assert len(TrainerOptions.__dataclass_fields__) == 15
    assert Clip(TrainerOptions().clip_norm).max == 1000


def follower(loss, target):
    learner = make_learner({"q": nn.Linear(2, 2)}, loss, adam, target_updater=target)
    return learner.modules["default"].networks["q"].target


@pytest.mark.pins("make_dqn_loss")
@pytest.mark.parametrize("given", [{"loss": "single"}, {"delay_value": False}])
def test_a_single_loss_bootstraps_from_the_network_itself(given):
    assert type(follower(make_dqn_loss(**given), FixedTarget(3))) is TrivialTarget
    assert type(follower(make_dqn_loss(loss="double"), FixedTarget(3))) is FixedTarget


@pytest.mark.pins("make_dqn_loss", excludes="unknown names reach the loss")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"loss": "triple"}, "there are single and double"),
        ({"loss": "double", "delay_value": False}, "loss='double' bootstraps from a target network"),
        ({"loss_function": "l1"}, "there are l2, smooth_l1"),
    ],
)
def test_losses_that_there_are_not_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        make_dqn_loss(**given)


@pytest.mark.pins("make_target_updater")
def test_a_target_by_the_names_of_the_page():
    soft = make_target_updater(value_network_update_interval=200)
    assert (type(soft), soft.rate) == (PolyakTarget, 1 / 200)
    hard = make_target_updater(hard_update=True, value_network_update_interval=200)
    assert (type(hard), hard.update_frequency) == (FixedTarget, 200)
    assert make_target_updater(hard_update=False).rate == 1 / 1000
    assert make_target_updater(hard_update=True, loss="double").update_frequency == 1000
    assert type(make_target_updater(hard_update=False, loss="single")) is TrivialTarget


@pytest.mark.pins("make_target_updater", excludes="the copy comes after interval + 1 updates")
def test_a_hard_update_comes_after_its_interval():
    network, target = nn.Linear(1, 1), make_target_updater(hard_update=True, value_network_update_interval=2)
    target.init(network)
    same = []
    for step in range(4):
        with torch.no_grad():
            network.weight.fill_(step)
        target.update()
        same.append(torch.equal(target.model.weight, network.weight))
    assert same == [False, True, False, True]


@pytest.mark.pins("make_target_updater")
@pytest.mark.parametrize("loss", ["single", make_dqn_loss(delay_value=False)])
def test_a_single_loss_has_no_hard_update(loss):
    with pytest.raises(ValueError, match="a single loss bootstraps from the network itself"):
        make_target_updater(hard_update=True, loss=loss)
    with pytest.raises(ValueError, match="not both"):
        make_target_updater(hard_update=True, rate=0.1)


def test_a_loss_by_terms_is_no_loss_module_and_the_line_says_where_it_goes():
    with pytest.raises(ValueError, match=r"a DQNLoss is no torch module, .* goes into make_learner"):
        make_trainer(collector(), total_frames=40, loss_module=make_dqn_loss())


@pytest.mark.pins("make_trainer", excludes="no save file and no interval are passed on")
def test_a_path_and_its_interval_are_passed_on(tmp_path):
    one = make_trainer(
        collector(), total_frames=8, loss_module=RewardModel(), save_trainer_file=tmp_path, save_trainer_interval=4
    )
    due = [one.checkpoint.due(Progress(frames=frames)) for frames in (2, 4, 6, 8)]
    assert due == [False, True, False, True]
