"""What people type is turned into what Hydra needs, and the values that run are those that were meant."""

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import CONF, check
from runner.config.report import Rejected

TUNED = "# @package _global_\ntotal_frames: 1234\noptimizer:\n  eps: 0.5\n"


def checked(*argv, conf=CONF):
    return check(parse_arguments(argv), conf)


def values(*argv, conf=CONF):
    return checked(*argv, conf=conf).config


@pytest.fixture
def tuned(conf):
    (conf / "tuned" / "dqn" / "cartpole.yaml").write_text(TUNED)
    return conf


def test_a_typed_unit_replaces_the_one_in_the_file():
    config = values("log_every.updates=3", "evaluation.every.episodes=4")
    assert config["log_every"] == {"updates": 3.0}
    assert config["evaluation"]["every"] == {"episodes": 4.0}


def test_the_same_unit_takes_the_new_number():
    assert values("log_every.env_steps=7")["log_every"] == {"env_steps": 7.0}
    assert values("log_every={episodes:7}")["log_every"] == {"episodes": 7.0}


def test_hydra_is_given_overrides_that_leave_one_unit():
    assert checked("log_every.updates=3").overrides == ["~log_every.env_steps", "++log_every.updates=3"]


def test_ways_to_stop_add_up():
    config = values("stop_after.updates=10", "stop_after.seconds=2.5")
    assert config["stop_after"] == {"updates": 10.0, "seconds": 2.5}


def test_values_are_what_the_signature_asks_for():
    config = values("total_frames=1e5", "optimizer.lr=1", "optimizer.betas=[0.8,0.9]")
    assert (config["total_frames"], type(config["total_frames"])) == (100_000, int)
    assert (config["optimizer"]["lr"], type(config["optimizer"]["lr"])) == (1.0, float)
    assert config["optimizer"]["betas"] == (0.8, 0.9)


def test_an_interpolated_value_follows_what_is_typed():
    assert values("loss.gamma=0.5")["source"]["gamma"] == 0.5


def test_tuned_values_apply_to_their_environment(tuned):
    config = values(conf=tuned)
    assert (config["total_frames"], config["optimizer"]["eps"]) == (1234, 0.5)
    assert values("total_frames=99", conf=tuned)["total_frames"] == 99
    assert values("tuned=null", conf=tuned)["total_frames"] != 1234
    assert values("env=acrobot", conf=tuned)["total_frames"] != 1234


def test_tuned_values_are_left_out_for_another_id_and_the_user_is_told(tuned):
    found = checked("env.id=Acrobot-v1", conf=tuned)
    assert found.config["total_frames"] != 1234
    assert "~tuned" in found.overrides
    assert len(found.notices) == 1
    assert "conf/tuned/dqn/cartpole.yaml" in found.notices[0]


def test_the_same_id_keeps_the_tuned_values(tuned):
    found = checked("env.id=CartPole-v1", conf=tuned)
    assert (found.config["total_frames"], found.notices) == (1234, [])


def test_a_tuned_value_for_another_choice_is_left_out_and_the_user_is_told(tuned):
    found = checked("optimizer=sgd", conf=tuned)
    assert found.config["total_frames"] == 1234
    assert "eps" not in found.config["optimizer"]
    assert "optimizer.eps" in found.notices[0]


def test_tuned_values_are_left_out_once_for_another_id_and_another_choice(tuned):
    found = checked("env.id=Acrobot-v1", "optimizer=sgd", conf=tuned)
    assert "eps" not in found.config["optimizer"]
    assert len(found.notices) == 1


def test_a_value_that_another_file_sets_is_not_left_out(conf):
    (conf / "target_updater" / "odd.yaml").write_text("defaults: [polyak]\nupdate_frequency: 5\n")
    with pytest.raises(Rejected, match=r"target_updater.update_frequency \(conf/target_updater/odd.yaml:2\)"):
        values("target_updater=odd", conf=conf)


def test_an_experiment_is_not_changed_by_tuned_values(tuned):
    assert values("experiment=cleanrl_dqn_cartpole", conf=tuned)["total_frames"] == 500_000


def test_a_group_set_to_null_is_left_out():
    config = values("scheduler=null", "logger=null", "hooks=null")
    assert (config["scheduler"], config["logger"], config["hooks"]) == (None, {}, {})


def test_a_named_node_can_be_taken_out_or_set_to_null():
    assert "log_reward" not in values("~hooks.log_reward")["hooks"]
    assert "log_reward" not in values("hooks.log_reward=null")["hooks"]


def test_an_unlisted_key_is_added_with_a_plus():
    assert values("+env.kwargs.gravity=9.8")["env"]["kwargs"] == {"gravity": 9.8}
