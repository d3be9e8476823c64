import warnings

import pytest
import torch
from torch import nn

from hooks.count_frames_log import CountFramesLog
from hooks.log_reward import LogReward
from hooks.optimizer import OptimizerHook
from hooks.update_weights import UpdateWeights
from runner.hook import StatelessHook, TrainerHookBase
from runner.trainer import Trainer
from tests.toys import Call, RewardModel, Tape, collector, trainer


class SelectKeys(StatelessHook):
    def __init__(self, *keys):
        self.keys = keys

    def register(self, trainer, name=None):
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("batch_process", self)

    def __call__(self, batch):
        return batch.select(*self.keys)


def names(one):
    return set(one.state_dict())


@pytest.mark.pins("TrainerHookBase", excludes="register needs a name that the example does not give")
def test_a_hook_has_a_default_name():
    one = trainer()
    LogReward().register(one)
    SelectKeys().register(one)
    assert {"log_reward", "select_keys"} <= names(one)


def test_a_hook_takes_the_name_it_is_given():
    one = trainer()
    LogReward().register(one, "returns")
    assert "returns" in names(one)
    assert "log_reward" not in names(one)


def test_a_name_is_given_once():
    one = trainer()
    LogReward().register(one)
    with pytest.raises(ValueError, match="'log_reward' is registered already; give another name"):
        LogReward().register(one)
    LogReward().register(one, "another")


@pytest.mark.parametrize("name", ["collector", "learner", "progress", "source", "metrics"])
def test_the_names_of_the_trainers_own_parts_are_taken(name):
    with pytest.raises(ValueError, match=name):
        trainer().register_module(name, nn.Linear(1, 1))


def test_swapped_arguments_get_a_hint():
    with pytest.raises(TypeError, match=r"register_module\(name, module\): the name comes first"):
        trainer().register_module(LogReward(), "log_reward")


def test_what_has_no_state_cannot_be_a_module():
    with pytest.raises(TypeError, match=r"thing: a object has no state_dict\(\)"):
        trainer().register_module("thing", object())


def test_an_unknown_point_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no hook point 'post_step'; there are batch_process, .*post_steps_log"):
        trainer().register_op("post_step", print)


def test_an_operation_has_to_be_callable():
    with pytest.raises(TypeError, match="must be callable"):
        trainer().register_op("post_steps", "print")


@pytest.mark.parametrize("missing", ["state_dict", "load_state_dict", "register"])
def test_a_hook_without_its_methods_is_refused_at_construction(missing):
    methods = {name: getattr(SelectKeys, name) for name in ("state_dict", "load_state_dict", "register")}
    del methods[missing]
    kind = type("Half", (TrainerHookBase,), methods)
    with pytest.raises(TypeError, match=f"Half.*{missing}"):
        kind()


@pytest.mark.pins("TrainerHookBase", excludes="the page calls it save_dict")
def test_save_dict_is_another_word_for_state_dict_and_warns():
    with pytest.warns(DeprecationWarning, match="Old.save_dict is now called state_dict"):

        class Old(TrainerHookBase):
            def register(self, trainer, name=None):
                trainer.register_module(name or self.default_name(), self)

            def save_dict(self):
                return {"counter": 3}

            def load_state_dict(self, state):
                self.counter = state["counter"]

    one = trainer()
    Old().register(one)
    assert one.state_dict()["old"] == {"counter": 3}


def test_state_dict_alone_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("New", (SelectKeys,), {})


def test_operations_are_called_in_the_order_of_registration_with_their_arguments():
    one, calls = trainer(4), []
    one.register_op("post_steps", lambda **given: calls.append(given), a=1)
    one.register_op("post_steps", lambda: calls.append("second"))
    one.train()
    assert calls == [{"a": 1}, "second"]


def test_the_schedule_names_the_operations_of_each_point():
    one = trainer()
    UpdateWeights(one.collector, {"batches": 1}).register(one)
    tape = Tape()
    one.register_op("batch_process", tape.data, at="here")
    schedule = one.schedule()
    assert (schedule["post_steps"], schedule["batch_process"]) == (["UpdateWeights"], ["Tape.data"])
    assert schedule["optimizer"] == ["Learner.step"]


def test_an_unregistered_hook_is_called_and_saved_no_more():
    one, tape, calls = trainer(4), Tape(), []
    tape.register(one)
    call = Call("post_steps", lambda: calls.append("called"))
    call.register(one)
    one.unregister(tape)
    one.train()
    assert (tape.events, calls) == ([], ["called"])
    assert "tape" not in names(one)
    one.unregister(call)
    assert "call" not in names(one)
    tape.register(one)


def test_key_selection_does_not_change_the_count_of_frames():
    one = trainer(8)
    SelectKeys("observation", ("next", "reward")).register(one)
    CountFramesLog().register(one)
    one.train()
    assert one.metrics.latest["train/n_frames"] == 8


def test_loss_module_and_optimizer_are_enough_to_learn():
    loss = RewardModel()
    one = Trainer(
        collector=collector(),
        total_frames=800,
        frame_skip=1,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=0.1),
    )
    losses = []
    one.register_op("post_optim", lambda: losses.append(one.metrics.latest["loss/model"].item()))
    one.train()
    # Rewards are linear in the observation ([t, 0.1] -> t + 1), so that the error can vanish.
    assert losses[0] > 5
    assert losses[-1] < 0.01


def test_such_a_trainer_refuses_a_second_owner_of_the_update():
    one = trainer()
    with pytest.raises(ValueError, match="applies the updates by itself"):
        OptimizerHook(one.learner).register(one)


def test_an_optimizer_hook_applies_the_same_update():
    one, other = trainer(8), trainer(8)
    by_hand = Trainer(collector=other.collector, learner=other.learner, total_frames=8)
    OptimizerHook(by_hand.learner).register(by_hand)
    one.train()
    by_hand.train()
    weights = [
        part.modules["default"].networks["loss_module"].model.linear.weight for part in (one.learner, other.learner)
    ]
    assert torch.equal(*weights)


@pytest.mark.parametrize("given", [{"loss_module": lambda batch: {}}, {"optimizer": object()}])
def test_a_plain_function_needs_an_optimizer_and_an_optimizer_a_loss(given):
    with pytest.raises(ValueError, match="goes together"):
        Trainer(collector=collector(), total_frames=8, **given)


def test_training_needs_a_collector():
    with pytest.raises(RuntimeError, match="no collector: it can save and load"):
        Trainer().train()
