"""Modules that join, leave, come back, and stand still."""

import pytest
import torch
from tensordict import TensorDict

from runner.learner.learner import Learner
from tests.learner.parts import bits, keyed, learner, parts, same, spec, transitions, update


def test_adding_and_removing_a_module_changes_no_bit_of_the_others():
    undisturbed, disturbed = learner("left", "right"), learner("left", "right")
    for number in range(12):
        if number == 3:
            disturbed.add_module(module_id="new", module_spec=spec(7))
        if number == 8:
            disturbed.remove_module("new")
        update(undisturbed, keyed("left", "right", seed=number))
        update(disturbed, keyed(*disturbed.module, seed=number))
        for module_id in ("left", "right"):
            assert same(bits(disturbed, module_id), bits(undisturbed, module_id))
    assert disturbed.module.keys() == {"left", "right"}


def test_a_module_that_was_added_learns_as_it_would_have_alone():
    one, alone = learner("left", "right"), learner("new", "other")
    one.add_module(module_id="new", module_spec=spec(0))
    for number in range(5):
        update(one, TensorDict({**parts("left", "right"), "new": transitions(number)}, []))
        update(alone, TensorDict({"new": transitions(number), "other": transitions(9)}, []))
    assert same(bits(one, "new"), bits(alone, "new"))


def test_a_module_that_joins_a_single_one_makes_batches_keyed():
    one = learner()
    one.add_module(module_id="new", module_spec=spec(1))
    metrics = update(one, keyed("default", "new"))
    assert {"default/loss/q", "new/loss/q"} <= metrics.keys()
    one.remove_module("new")
    assert update(one, keyed("default")).keys() == {"default/loss/q"}


def test_an_id_that_comes_back_begins_clean_with_its_new_configuration():
    one = learner("left", "right", options={"right": {"lr": 0.5, "clip": 1.0}})
    for number in range(3):
        one.update_from_batch(parts("left", "right", seed=number))
    old = one.get_optimizer("right")
    assert one.metrics.peek(("right", "num_module_steps_trained_lifetime")) == 18
    one.remove_module("right")
    assert "right" not in one.metrics.reduce()
    with pytest.raises(KeyError):
        one.get_optimizer("right")
    one.add_module(module_id="right", module_spec=spec(1), config_overrides={"lr": [[0, 0.25], [100, 0.125]]})
    fresh = one.get_optimizer("right")
    assert fresh is not old
    assert not fresh.state
    assert fresh.param_groups[0]["lr"] == 0.25
    assert one.module["right"].optimizations[0].clip is None
    metrics = one.update_from_batch(parts("left", "right"), timesteps={"env_steps": 50})
    assert metrics["right"]["lr/default"] == 0.1875
    assert metrics["right"]["num_module_steps_trained_lifetime"] == 6
    assert metrics["left"]["num_module_steps_trained_lifetime"] == 24
    assert [one.name for one in one.module["right"].optimizations] == ["default"]


def test_a_schedule_of_a_removed_module_moves_nothing_of_the_one_after_it():
    one = learner("left", "right", options={"right": {"lr": [[0, 1.0], [10, 0.0]]}})
    one.remove_module("right")
    one.add_module(module_id="right", module_spec=spec(1))
    one.progress.env_steps = 10
    update(one, keyed("left", "right"))
    assert one.get_optimizer("right").param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("module_id", ["", "a/b", "a:b", "end.", "end ", "a*", None, 3, "__all_modules__", "a\n"])
def test_an_id_that_could_be_no_folder_is_refused(module_id):
    one = learner("left", "right")
    with pytest.raises(ValueError, match="cannot be a module's id"):
        one.add_module(module_id=module_id, module_spec=spec())
    with pytest.raises(ValueError, match="cannot be a module's id"):
        Learner({module_id: spec()}).build()
    assert one.module.keys() == {"left", "right"}


def test_mistakes_leave_the_learner_as_it_was():
    one = learner("left", "right")
    for call, words in (
        (lambda: one.add_module(module_id="left", module_spec=spec()), "there is a module 'left' already"),
        (lambda: one.remove_module("lef"), "no module 'lef'; there are left, right"),
        (
            lambda: one.add_module(module_id="new", module_spec=spec(), config_overrides={"lrr": 1}),
            "has no lrr; did you mean lr",
        ),
        (
            lambda: one.add_module(module_id="new", module_spec=spec(), new_should_module_be_updated=["newer"]),
            "modules_to_train: there is no module 'newer'",
        ),
        (
            lambda: one.add_module(module_id="new", module_spec=one.module["left"], config_overrides={"lr": 1}),
            "config_overrides go with a ModuleSpec",
        ),
        (lambda: one.add_module(module_id="new", module_spec=one.module["left"]), "would both move the same"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
        assert one.module.keys() == {"left", "right"}
        assert one.modules_to_train is None
    update(one, keyed("left", "right"))


@pytest.mark.parametrize("select", [["left"], ("left",), {"left"}, lambda module_id, batch: module_id == "left"])
def test_only_chosen_modules_are_updated(select):
    one, every = learner("left", "right", modules_to_train=select), learner("left", "right")
    frozen = bits(one, "right")
    for number in range(4):
        update(one, keyed("left", "right", seed=number))
        update(every, keyed("left", "right", seed=number))
    assert same(bits(one, "right"), frozen)
    assert same(bits(one, "left"), bits(every, "left"))


def test_who_is_updated_may_depend_on_the_batch():
    one = learner(
        "left", "right", modules_to_train=lambda module_id, batch: batch[module_id]["next", "reward"].sum() > 0
    )
    batch = keyed("left", "right")
    for module_id, reward in (("left", 1.0), ("right", -1.0)):
        batch[module_id, "next", "reward"] = torch.full((6,), reward)
    assert update(one, batch).keys() == {"left/loss/q"}


def test_the_choice_can_be_changed_as_modules_come_and_go():
    one = learner("left", "right", modules_to_train=["left"])
    one.add_module(module_id="new", module_spec=spec(2), new_should_module_be_updated=["new"])
    assert update(one, keyed("left", "right", "new")).keys() == {"new/loss/q"}
    one.remove_module("new", new_should_module_be_updated=["right"])
    assert update(one, keyed("left", "right")).keys() == {"right/loss/q"}
    one.remove_module("right")
    assert one.modules_to_train == []


def test_modules_to_train_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="modules_to_train: there is no module 'middle'; there are left, right"):
        learner("left", "right", modules_to_train=["middle"])


def test_a_module_without_data_is_not_updated_and_unknown_ones_are_refused_by_name():
    one = learner("left", "right")
    before = bits(one, "right")
    assert update(one, keyed("left")).keys() == {"left/loss/q"}
    assert same(bits(one, "right"), before)
    with pytest.raises(ValueError, match="parts for middle, which are no modules; there are left, right"):
        update(one, keyed("left", "middle"))
