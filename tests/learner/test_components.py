"""Parts of a learner's state: what is saved, and what is restored."""

import pytest
import torch

from runner.learner.optimization import NonFiniteError
from runner.spec import CheckpointError
from tests.learner.parts import bits, learner, parts, same


def trained(*ids, seed=0, **options):
    one = learner(*ids, shuffling=torch.Generator().manual_seed(3), **options)
    for number in range(5):
        one.update_from_batch(parts(*one.module, seed=seed + number), minibatch_size=2, shuffle_batch_per_epoch=True)
    return one


def test_a_state_has_the_components_that_are_asked_for():
    one = trained("left", "right")
    always, whole = {"weights_seq_no"}, {"should_module_be_updated", "progress"}
    assert one.get_state().keys() == always | whole | {"rl_module", "optimizer", "metrics_logger"}
    assert one.get_state("rl_module").keys() == always | {"rl_module"}
    left = one.get_state(components=["rl_module/left", "optimizer"])
    assert left.keys() == always | {"rl_module", "optimizer"}
    assert left["rl_module"].keys() == {"left"}
    assert left["optimizer"].keys() == {"left", "right"}
    assert one.get_state(not_components="optimizer").keys() == always | {"rl_module", "metrics_logger"}
    assert one.get_state(not_components="rl_module/left")["rl_module"].keys() == {"right"}
    assert one.get_state("rl_module", "rl_module/right")["rl_module"].keys() == {"left"}


@pytest.mark.parametrize("name", ["rl_modul", "rl_module/middle", "optimiser", "left"])
def test_a_component_that_there_is_not_is_refused(name):
    one = learner("left", "right")
    with pytest.raises(
        ValueError, match=r"no component .*; there are rl_module, optimizer, metrics_logger, rl_module/left"
    ):
        one.get_state(components=[name])
    with pytest.raises(ValueError, match="no component"):
        one.get_state(not_components=name)


def test_restoring_one_module_leaves_the_bits_of_the_other_alone():
    source, target = trained("left", "right"), trained("left", "right", seed=50)
    right, optimizer = bits(target, "right"), target.get_state("optimizer/left")["optimizer"]["left"]
    moments = {index: {name: one.clone() for name, one in values.items()}
               for index, values in optimizer["optimizations"]["default"]["optimizer"].items()}  # fmt: skip
    target.set_state(source.get_state("rl_module/left"))
    assert same(bits(target, "right"), right)
    assert same(weights(target, "left"), weights(source, "left"))
    after = target.get_state("optimizer")["optimizer"]["left"]["optimizations"]["default"]["optimizer"]
    assert all(
        torch.equal(after[index][name], one) for index, values in moments.items() for name, one in values.items()
    )
    assert not same(bits(target, "left"), bits(source, "left"))


def weights(one, module_id):
    q = one.module[module_id].networks["q"]
    return [*q.model.parameters(), *q.target.model.parameters()]


def test_a_whole_state_goes_on_bit_for_bit_with_the_same_shuffling_metrics_and_counts():
    whole, first = trained("left", "right"), trained("left", "right")
    second = learner("left", "right", shuffling=torch.Generator().manual_seed(9))
    second.load_state_dict(first.state_dict())
    told = [
        one.update_from_batch(parts("left", "right", seed=77), minibatch_size=2, shuffle_batch_per_epoch=True)
        for one in (whole, second)
    ]
    assert told[0] == told[1]
    for module_id in ("left", "right"):
        assert same(bits(whole, module_id), bits(second, module_id))


def test_an_older_state_is_restored_whole():
    one = trained("left", "right")
    old = one.get_state()
    expected = bits(one, "left")
    for number in range(4):
        one.update_from_batch(parts("left", "right", seed=number))
    assert one.weights_seq_no == 9
    one.set_state(old)
    assert one.weights_seq_no == 5
    assert same(bits(one, "left"), expected)


def test_weights_that_are_sent_are_taken_unless_they_are_older():
    sender, receiver = trained("left", "right"), learner("left", "right")
    message = sender.get_state("rl_module")
    assert receiver.set_weights(message)
    assert receiver.weights_seq_no == 5
    assert same(weights(receiver, "left"), weights(sender, "left"))
    for _ in range(2):
        sender.update_from_batch(parts("left", "right"))
    assert receiver.set_weights(sender.get_state("rl_module"))
    kept = weights(receiver, "left")
    assert not receiver.set_weights(message)
    assert same(weights(receiver, "left"), kept)
    assert receiver.set_weights({**message, "weights_seq_no": 0})
    assert receiver.weights_seq_no == 7


def test_metrics_are_told_and_forgotten_without_any_effect_on_what_is_learnt():
    one, other = trained("left", "right"), trained("left", "right")
    state = one.get_state(not_components="metrics_logger")
    other.metrics.remove("left")
    other.set_state(state)
    for each in (one, other):
        each.update_from_batch(parts("left", "right"))
    assert same(bits(one, "left"), bits(other, "left"))


def test_weights_that_are_no_numbers_are_not_handed_out():
    one = learner("left", "right")
    one.module["left"].networks["q"].model.layers[0].weight.data[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="'left'"):
        one.get_state()


def test_who_is_updated_is_part_of_the_state():
    one, other = learner("left", "right", modules_to_train=["left"]), learner("left", "right")
    other.set_state(one.get_state())
    assert other.modules_to_train == ["left"]
    chosen = learner("left", "right", modules_to_train=lambda module_id, batch: True)
    chosen.set_state(one.get_state())
    assert callable(chosen.modules_to_train)


def test_a_state_of_other_modules_or_networks_is_refused():
    one = learner("left", "right")
    three = learner("left", "right", "third")
    with pytest.raises(CheckpointError, match="has third, and there are the modules left, right"):
        one.load_state_dict(three.state_dict())
    with pytest.raises(CheckpointError, match="has no third"):
        three.load_state_dict(one.state_dict())
    with pytest.raises(CheckpointError, match="has no optimizer"):
        one.load_state_dict(one.get_state("rl_module"))
    state = one.get_state()
    state["rl_module"]["left"] = {"policy": state["rl_module"]["left"]["q"]}
    with pytest.raises(CheckpointError, match="networks of module 'left' are q; those saved are policy"):
        one.set_state(state)
