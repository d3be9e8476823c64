"""What update calls do with batches, iterators and states, and what they tell."""

import itertools
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from runner.learner.learner import Learner
from runner.learner.metrics import LearnerMetrics
from tests.learner.parts import bits, keyed, learner, parts, same, transitions, update


def test_without_minibatches_each_epoch_is_one_update_with_the_whole_batch():
    one, other = learner(), learner()
    one.update_from_batch(transitions(), num_epochs=3)
    for _ in range(3):
        update(other, transitions())
    assert same(bits(one), bits(other))
    assert one.progress.updates == 3


def test_no_row_of_a_shuffled_epoch_is_left_out_or_seen_twice():
    seen = []

    class Seeing(Learner):
        def compute_losses(self, batch):
            seen.append(batch["row"].tolist())
            return super().compute_losses(batch)

    batch = transitions(size=12).set("row", torch.arange(12))
    one = learner(kind=Seeing)
    one.update_from_batch(batch, num_epochs=2, minibatch_size=4, shuffle_batch_per_epoch=True)
    rows = list(itertools.chain.from_iterable(seen))
    assert [len(some) for some in seen] == [4] * 6
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert list(range(12)) != rows[:12] != rows[12:]


def test_an_iterator_that_never_ends_is_asked_for_no_more_than_was_said():
    given = []

    def endless():
        for number in itertools.count():
            given.append(number)
            yield transitions(number)

    one, source = learner(), endless()
    one.update_from_iterator(source, num_iters=3)
    assert given == [0, 1, 2]
    one.update_from_iterator(source, num_iters=1)
    assert given == [0, 1, 2, 3]
    for number in (None, 0, -1):
        with pytest.raises(ValueError, match="num_iters: how many minibatches"):
            one.update_from_iterator(source, num_iters=number)
    assert len(given) == 4


def test_what_an_iterator_may_not_be_asked_is_refused_before_it_gives_anything():
    def untouched():
        raise AssertionError("it was asked")
        yield

    one = learner()
    with pytest.raises(ValueError, match="num_epochs: an iterator has none; say num_iters"):
        one.update_from_iterator(untouched(), num_iters=1, num_epochs=1)
    with pytest.raises(TypeError, match="takes no shuffle_batch_per_epoch"):
        one.update_from_iterator(untouched(), num_iters=1, shuffle_batch_per_epoch=True)
    assert one.weights_seq_no == 0


def test_a_number_of_minibatches_that_comes_out_as_none_at_all_is_refused():
    one = learner()
    with pytest.raises(ValueError, match="num_total_minibatches have to be >= 1"):
        one.update_from_batch(transitions(), num_epochs=2, minibatch_size=3, num_total_minibatches=6 // 7)
    assert one.progress.updates == one.weights_seq_no == 0


ALL = "__all_modules__"
OF_A_MODULE = {
    "num_trainable_parameters", "num_non_trainable_parameters", "num_module_steps_trained",
    "num_module_steps_trained_lifetime", "module_train_batch_size_mean", "loss/q", "total_loss", "grad_norm/default",
    "lr/default", "train/skipped/default", "weights_seq_no", "diff_num_grad_updates_vs_sampler_policy",
}  # fmt: skip
OF_ALL = {
    "num_trainable_parameters", "num_non_trainable_parameters", "num_module_steps_trained",
    "num_module_steps_trained_lifetime", "num_env_steps_trained", "num_env_steps_trained_lifetime",
}  # fmt: skip


def measured():
    settings = {"clip": 1.0, "non_finite": "skip"}
    one = learner("left", "right", options={"left": settings, "right": settings})
    batch = {"left": transitions(0, 6), "right": transitions(1, 4)}
    for part in batch.values():
        part["weights_seq_no"] = torch.zeros(part.batch_size, dtype=torch.int64)
    first = one.update_from_batch(batch, minibatch_size=2, num_epochs=2)
    return one, first, one.update_from_batch(batch, minibatch_size=2, num_epochs=2)


def test_each_module_tells_its_sizes_steps_losses_rates_norms_and_age():
    _, first, second = measured()
    assert first.keys() == second.keys() == {"left", "right", ALL}
    assert second["left"].keys() >= OF_A_MODULE
    assert second["left"].keys() == second["right"].keys()
    assert second[ALL].keys() >= OF_ALL
    each = 3 * 8 + 8 + 8 * 2 + 2
    left, right = second["left"], second["right"]
    assert (left["num_trainable_parameters"], left["num_non_trainable_parameters"]) == (each, 0)
    assert (left["num_module_steps_trained"], right["num_module_steps_trained"]) == (6, 4)
    assert (left["num_module_steps_trained_lifetime"], right["num_module_steps_trained_lifetime"]) == (12, 8)
    assert left["module_train_batch_size_mean"] == right["module_train_batch_size_mean"] == 2
    assert (first["left"]["weights_seq_no"], left["weights_seq_no"]) == (1, 2)
    assert first["left"]["diff_num_grad_updates_vs_sampler_policy"] == 0
    assert left["diff_num_grad_updates_vs_sampler_policy"] == 1
    assert (left["lr/default"], left["train/skipped/default"]) == (0.01, 0)
    assert left["loss/q"] == left["total_loss"] > 0
    assert second[ALL]["num_trainable_parameters"] == 2 * each
    assert (second[ALL]["num_env_steps_trained"], second[ALL]["num_env_steps_trained_lifetime"]) == (10, 20)
    assert second[ALL]["num_module_steps_trained_lifetime"] == 20


def test_the_numbers_of_the_last_update_of_a_call_are_those_that_are_told():
    one, other = learner(), learner()
    told = one.update_from_batch(transitions(size=6), minibatch_size=2)["default"]
    rows = [update(other, transitions(size=6)[first : first + 2]) for first in (0, 2, 4)]
    assert told["loss/q"] == told["total_loss"] == rows[-1]["loss/q"].item()
    assert len({row["loss/q"].item() for row in rows}) == 3


@pytest.mark.parametrize("compile", ["none", "trace"])
def test_no_number_is_read_from_a_tensor_before_all_minibatches_are_done(monkeypatch, compile):
    read = []

    def noting(name, method):
        return lambda tensor, *more: (read.append(name), method(tensor, *more))[1]

    class Ending(Learner):
        def after_gradient_based_update(self, timesteps):
            read.append("end")

    one = learner(kind=Ending, compile=compile, options={"default": {"clip": 1.0}})
    one.update_from_batch(transitions(), minibatch_size=2)  # recorded, where updates are
    read.clear()
    for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, noting(name, getattr(torch.Tensor, name)))
    one.update_from_batch(transitions(), minibatch_size=2)
    assert read[0] == "end"
    assert "item" in read


def test_the_time_inside_is_told_whoever_it_is_spent_by():
    one = learner()
    with one.metrics.log_time(("default", "seconds"), "max"):
        one.update_from_batch(transitions())
    assert 0 < one.update_from_batch(transitions())["default"]["seconds"] < 60


@pytest.mark.parametrize("reduce", ["mean", "last", "min", "max", "series", "percentiles"])
def test_what_learners_beside_one_another_have_measured_comes_together(reduce):
    metrics, other = LearnerMetrics(), LearnerMetrics()
    metrics.log_value("x", 1, reduce)
    other.log_value("x", 3, reduce)
    metrics.merge([other])
    found, expected = metrics.reduce()["x"], {"mean": 2, "last": 3, "min": 1, "max": 3, "series": [1, 3]}
    if reduce == "percentiles":
        assert (found["p0"], found["p50"], found["p100"]) == (1, 2, 3)
    else:
        assert found == expected[reduce]


def test_who_is_asked_which_modules_to_update_sees_the_batches_of_all():
    asked = []

    def select(module_id, batch):
        asked.append((module_id, sorted(batch.keys())))
        return module_id == "right"

    one = learner("left", "right", modules_to_train=select)
    frozen = bits(one, "left")
    one.update_from_batch(parts("left", "right"), minibatch_size=2, num_epochs=2)
    assert asked == [("left", ["left", "right"]), ("right", ["left", "right"])]
    assert same(bits(one, "left"), frozen)
    asked.clear()
    update(one, keyed("left", "right"))
    assert asked == [("left", ["left", "right"]), ("right", ["left", "right"])]


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"precision": "bf16"}, {"compile": "none"}, {}])
def test_a_learner_goes_on_from_its_state_bit_for_bit(options):
    def made(seed):
        right = {"lr": [[0, 0.1], [100, 0.0]], "update_every": 2}
        settings = {"left": {"scheduler": partial(ExponentialLR, gamma=0.9)}, "right": right}
        return learner("left", "right", options=settings, shuffling=torch.Generator().manual_seed(seed), **options)

    def learn(one, numbers):
        for number in numbers:
            batch, told = parts("left", "right", seed=number, size=7), {"env_steps": 5 * number}
            if number == 1 and options.get("precision") == "fp16":
                batch["left"]["observation"].fill_(float("inf"))  # halves the scale
            more = {"minibatch_size": 3, "shuffle_batch_per_epoch": True}
            one.update_from_batch(batch, timesteps=told if number < 3 else None, **more)
        return one

    whole, second = learn(made(0), range(8)), made(1)
    first = learn(made(0), range(3))
    second.load_state_dict(first.get_state())
    learn(second, range(3, 8))
    for module_id in ("left", "right"):
        assert same(bits(second, module_id), bits(whole, module_id))
        assert not same(bits(first, module_id), bits(whole, module_id))
    assert second.metrics.reduce() == whole.metrics.reduce()


def test_where_an_iterator_was_is_not_part_of_a_state():
    loader = [transitions(number) for number in range(5)]
    first, second, other = learner(), learner(), learner()
    first.update_from_iterator(loader, num_iters=2)
    second.load_state_dict(first.get_state())
    other.load_state_dict(first.get_state())
    second.update_from_iterator(loader, num_iters=1)
    other.update_from_batch(transitions(0))  # from the beginning; whoever wants it otherwise hands over an iterator
    assert same(bits(second), bits(other))
    first.update_from_iterator(loader, num_iters=1)
    assert not same(bits(first), bits(other))


def test_a_total_is_told_of_each_module_and_of_all():
    told = learner("left", "right", "idle", modules_to_train=["left", "right"]).update_from_batch(
        parts("left", "right", "idle")
    )
    assert told["left"]["total_loss"] != told["right"]["total_loss"]
    assert told[ALL]["total_loss"] == pytest.approx(told["left"]["total_loss"] + told["right"]["total_loss"])
    assert "total_loss" not in told.get("idle", {})
