"""A learner that is given data by its user, without a trainer."""

import pytest
import torch
from tensordict import TensorDict

from runner.learner.connectors import EpisodesToBatch
from runner.learner.learner import Learner
from tests.learner.parts import bits, learner, parts, same, transitions, update


def test_an_update_from_a_batch_is_what_a_trainer_would_have_done():
    one, other = learner(), learner()
    metrics = one.update_from_batch(transitions())
    expected = update(other, transitions())
    assert same(bits(one), bits(other))
    assert metrics["default"]["loss/q"] == expected["loss/q"].item()
    assert metrics["default"]["total_loss"] == expected["loss/q"].item()
    assert one.progress.updates == 1


def test_epochs_and_minibatches_are_updates_in_their_order():
    one, other, batch = learner(), learner(), transitions(size=7)
    one.update_from_batch(batch, num_epochs=2, minibatch_size=3)
    order = [0, 1, 2, 3, 4, 5, 6] * 3
    for first in range(0, 15, 3):  # ceil(2 * 7 / 3) = 5
        update(other, batch[torch.tensor(order[first : first + 3])])
    assert one.progress.updates == 5
    assert same(bits(one), bits(other))


def test_shuffling_shuffles_one_epoch_too_and_repeats_itself_from_the_generator():
    def trained(seed, **options):
        one = learner(shuffling=torch.Generator().manual_seed(seed))
        one.update_from_batch(transitions(size=8), minibatch_size=2, **options)
        return list(one.module["default"].networks["q"].model.parameters())

    assert same(trained(0, shuffle_batch_per_epoch=True), trained(0, shuffle_batch_per_epoch=True))
    assert not same(trained(0, shuffle_batch_per_epoch=True), trained(1, shuffle_batch_per_epoch=True))
    assert not same(trained(0, shuffle_batch_per_epoch=True), trained(0))
    assert same(trained(0), trained(1))


@pytest.mark.parametrize("options", [{}, {"minibatch_size": 3}, {"num_epochs": 2}, {"minibatch_size": 6}])
def test_the_batch_of_the_caller_stays_as_it_was(options):
    one, batch = learner("left", "right", modules_to_train=["left"]), parts("left", "right")
    before = {module_id: part.clone() for module_id, part in batch.items()}
    one.update_from_batch(batch, shuffle_batch_per_epoch=True, **options)
    assert batch.keys() == before.keys()
    for module_id, part in batch.items():
        assert set(part.keys(True, True)) == set(before[module_id].keys(True, True))
        assert (part == before[module_id]).all()


def test_all_modules_are_minibatched_alike_and_the_longest_ends_it():
    one = learner("left", "right")
    metrics = one.update_from_batch(
        {"left": transitions(size=6), "right": transitions(1, size=2)}, minibatch_size=2, num_epochs=1
    )
    assert one.progress.updates == 3
    assert metrics["right"]["num_module_steps_trained"] == 2
    assert metrics["left"]["module_train_batch_size_mean"] == 2
    assert metrics["__all_modules__"]["num_env_steps_trained"] == 8


def test_a_fixed_number_of_minibatches():
    one = learner()
    one.update_from_batch(transitions(), minibatch_size=2, num_total_minibatches=5)
    assert one.progress.updates == 5


def test_steps_are_counted_once_for_each_batch_however_it_is_cut():
    one = learner()
    for _ in range(2):
        metrics = one.update_from_batch(transitions(), minibatch_size=2, num_epochs=3)
    assert metrics["default"]["num_module_steps_trained"] == 6
    assert metrics["default"]["num_module_steps_trained_lifetime"] == 12
    assert metrics["default"]["weights_seq_no"] == one.weights_seq_no == 2


def test_steps_that_a_mask_leaves_out_do_not_count():
    one, batch = learner(), transitions()
    batch["collector", "mask"] = torch.tensor([True, True, False, True, False, False])
    assert one.update_from_batch(batch)["default"]["num_module_steps_trained"] == 3


def test_the_age_of_the_data_is_told_in_updates_of_the_weights():
    one = learner()
    for _ in range(3):
        one.update_from_batch(transitions())
    batch = transitions().set("weights_seq_no", torch.tensor([3, 3, 2, 2, 1, 1]))
    assert one.update_from_batch(batch)["default"]["diff_num_grad_updates_vs_sampler_policy"] == 1.0


class Noting(Learner):
    def build(self):
        self.calls = []
        return super().build()

    def before_gradient_based_update(self, timesteps):
        self.calls.append(("before", timesteps["env_steps"], timesteps["updates"]))

    def after_gradient_based_update(self, timesteps):
        self.calls.append(("after", timesteps["env_steps"], timesteps["updates"]))


def test_what_comes_before_and_after_is_called_even_if_no_module_is_updated():
    one = learner("left", "right", kind=Noting, modules_to_train=[])
    one.update_from_batch(parts("left", "right"), timesteps={"env_steps": 40})
    assert one.calls == [("before", 40, 0), ("after", 40, 0)]
    assert one.progress.updates == 0
    assert one.weights_seq_no == 1


def test_what_comes_before_and_after_is_called_once_for_all_minibatches():
    one = learner(kind=Noting)
    one.update_from_batch(transitions(), timesteps={"env_steps": 5}, minibatch_size=2)
    assert one.calls == [("before", 5, 0), ("after", 5, 3)]


def test_episodes_become_a_batch_by_connectors_that_a_user_extends():
    def rewards_doubled(episodes, batch):
        batch["next", "reward"] = batch["next", "reward"] * 2
        return batch

    one, other = learner(connectors=EpisodesToBatch(more=[rewards_doubled])), learner()
    episodes = [transitions(0, 4), transitions(1, 3)]
    one.update_from_episodes(episodes, minibatch_size=7)
    joined = torch.cat(episodes)
    joined["next", "reward"] = joined["next", "reward"] * 2
    update(other, joined)
    assert same(bits(one), bits(other))


def test_episodes_of_several_modules():
    one, other = learner("left", "right"), learner("left", "right")
    one.update_from_episodes({"left": [transitions(0, 4)], "right": [transitions(1, 2), transitions(2, 2)]})
    right = torch.cat([transitions(1, 2), transitions(2, 2)])
    update(other, TensorDict({"left": transitions(0, 4), "right": right}, []))
    assert all(same(bits(one, module_id), bits(other, module_id)) for module_id in ("left", "right"))


def test_an_iterator_goes_on_where_it_was_and_begins_anew_at_its_end():
    one, other = learner(), learner()
    loader = [transitions(number) for number in range(3)]
    for number in (2, 3):
        metrics = one.update_from_iterator(loader, num_iters=number, minibatch_size=6)
    for number in (0, 1, 2, 0, 1):
        update(other, transitions(number))
    assert same(bits(one), bits(other))
    assert metrics["__all_modules__"]["dataset_num_iters_trained"] == 3
    assert metrics["__all_modules__"]["dataset_num_iters_trained_lifetime"] == 5


def test_a_second_iterator_is_another_one_and_several_take_turns():
    one, other = learner(), learner()
    first, second = iter([transitions(0), transitions(1)]), [transitions(5), transitions(6)]
    one.update_from_iterator(first, num_iters=1)
    one.update_from_iterator(second, num_iters=1)
    one.update_from_iterator(first, num_iters=1)
    one.update_from_iterator({"a": second, "b": [transitions(8)]}, num_iters=2)
    for number in (0, 5, 1, 6, 8):
        update(other, transitions(number))
    assert same(bits(one), bits(other))


def test_who_is_updated_holds_for_iterators_too():
    one = learner("left", "right", modules_to_train=["left"])
    frozen = bits(one, "right")
    metrics = one.update_from_iterator([parts("left", "right")], num_iters=2)
    assert same(bits(one, "right"), frozen)
    assert metrics["left"]["num_module_steps_trained"] == 12
    assert "num_module_steps_trained" not in metrics.get("right", {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_epochs": 2, "num_iters": 1}, "num_epochs: an iterator has none; say num_iters"),
        ({}, "num_iters: how many"),
        ({"num_iters": 0}, "num_iters: how many"),
        ({"num_iters": 1, "minibatch_size": 5}, "gives 6 rows for 'default'"),
    ],
)
def test_an_iterator_without_an_end_is_not_asked_for_all(options, words):
    with pytest.raises(ValueError, match=words):
        learner().update_from_iterator([transitions()], **options)


def test_an_empty_iterator_is_refused():
    with pytest.raises(ValueError, match="gives nothing"):
        learner().update_from_iterator([], num_iters=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_epochs": 0}, "have to be >= 1"),
        ({"minibatch_size": 0}, "have to be >= 1"),
        ({"num_total_minibatches": 0}, "have to be >= 1"),
        ({"num_total_minibatches": -1}, "have to be >= 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner().update_from_batch(transitions(), **options)


def test_batches_of_no_module_are_refused_by_name():
    one = learner("left", "right")
    with pytest.raises(ValueError, match="keyed by their ids, left, right"):
        one.update_from_batch(transitions())
    with pytest.raises(ValueError, match="parts for middle, which are no modules"):
        one.update_from_batch(parts("left", "middle"))
    with pytest.raises(ValueError, match="module 'left' has no rows"):
        one.update_from_batch({"left": transitions(size=0), "right": transitions()}, minibatch_size=2)
    with pytest.raises(ValueError, match="no episodes"):
        one.update_from_episodes({"left": []})
