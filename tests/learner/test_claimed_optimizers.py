"""Whose settings an optimizer has, how its rate moves, and what becomes of it when its module goes."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import ExponentialLR

from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.report import Rejected
from runner.learner.approximation import Approximation
from runner.learner.gradients import Clip
from runner.learner.learner import Learner
from runner.learner.module import Module, ModuleSpec
from runner.learner.optimization import Optimization
from runner.losses.dqn import DQNLoss
from runner.spec import CheckpointError
from tests.learner.parts import config, keyed, learner, parts, q_network, spec, transitions, update


def by_layer(more=None, *ids, **options):
    """With two optimizers of each network, ``body`` and ``head``, and the options that ``more`` names for them."""

    class ByLayer(Learner):
        def configure_optimizers_for_module(self, module_id, config):
            layers = self.modules[module_id].networks["q"].model.layers
            for name, layer in zip(("body", "head"), layers, strict=True):
                params, own = self.get_parameters(layer), (more or {}).get(name, {})
                named = {"module_id": module_id, "optimizer_name": name, **own}
                self.register_optimizer(optimizer=optim.SGD(params, lr=1.0), params=params, **named)

    return learner(*ids, kind=ByLayer, **options)


def weights(one, module_id="default"):
    return [[parameter.detach().clone() for parameter in optimization.parameters]
            for optimization in one.module[module_id].optimizations]  # fmt: skip


def lengths(before, after):
    """How far each optimizer has gone, as one vector."""
    pairs = [zip(*each, strict=True) for each in zip(before, after, strict=True)]
    return [torch.cat([(new - old).flatten() for old, new in some]).norm().item() for some in pairs]


def test_what_is_registered_is_bounded_for_itself_by_the_configuration_of_its_module():
    options = {"left": {"clip": 0.01}, "right": {"clip": 0.002, "clip_by": "value"}, "free": {}}
    one = by_layer(None, *options, options=options)
    before = {module_id: weights(one, module_id) for module_id in options}
    metrics = update(one, keyed(*options))
    gone = {module_id: lengths(before[module_id], weights(one, module_id)) for module_id in options}
    # Each is bounded to a hundredth, where one bound for both would leave less for either.
    assert gone["left"] == pytest.approx([0.01, 0.01], rel=1e-3)
    for layers in zip(before["right"], weights(one, "right"), strict=True):
        furthest = [(new - old).abs().max().item() for old, new in zip(*layers, strict=True)]
        assert furthest == pytest.approx([0.002, 0.002], rel=1e-3)
    assert min(gone["free"]) > 0.01
    for name in ("body", "head"):
        assert metrics[f"left/grad_norm/{name}"] > 0.01
        assert f"free/grad_norm/{name}" not in metrics


def test_an_option_of_one_optimizer_wins_over_the_configuration():
    more = {"head": {"clip": None}, "body": {"clip": Clip(0.5, "norm"), "every": 3, "non_finite": "zero"}}
    one = by_layer(more, options={"default": {"clip": 0.01, "non_finite": "skip", "non_finite_limit": 7}})
    body, head = one.module["default"].optimizations
    assert (body.clip.max, body.clip.by, body.every, body.non_finite) == (0.5, "norm", 3, "zero")
    assert (head.clip, head.every, head.non_finite) == (None, 1, "skip")
    assert body.non_finite_limit == head.non_finite_limit == 7


def test_without_a_configuration_there_is_nothing_to_take_over():
    one = Learner(Module(q_network(0), DQNLoss(0.9, True, "l2"))).build()
    params = one.get_parameters(one.module["default"])
    made = one.register_optimizer(optimizer=optim.SGD(params, lr=1.0), params=params)
    assert (made.clip, made.non_finite) == (None, "raise")
    assert one.module["default"].optimizations == (made,)
    assert one.get_optimizer() is made.optimizer


def test_each_module_gets_its_own_configuration_with_what_it_overrides():
    seen = {}

    class Seeing(Learner):
        def configure_optimizers_for_module(self, module_id, config):
            seen[module_id] = config
            super().configure_optimizers_for_module(module_id, config)

    one = learner("left", "right", kind=Seeing, options={"left": {"lr": 0.5}})
    common = spec(2, clip=3.0)
    one.add_module(module_id="new", module_spec=common, config_overrides={"lr": 0.25})
    assert {module_id: (given.lr, given.clip) for module_id, given in seen.items()} == {
        "left": (0.5, None), "right": (None, None), "new": (0.25, 3.0)
    }  # fmt: skip
    assert common.config.lr is None  # what was given stays as it was
    assert {one.get_optimizer(each).param_groups[0]["lr"] for each in ("left", "new")} == {0.5, 0.25}


def test_a_rate_that_nobody_has_given_is_never_touched():
    one = by_layer({"head": {"lr_or_lr_schedule": 0.5}})
    for name in ("body", "head"):
        one.get_optimizer(optimizer_name=name).param_groups[0]["lr"] = 3.0
    one.update_from_batch(transitions(), timesteps={"env_steps": 50})
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in one.get_optimizers_for_module()}
    assert rates == {"body": 3.0, "head": 0.5}


@pytest.mark.parametrize(("lr", "expected"), [(0.125, (0.125, 0.125)), ([[0, 1.0], [100, 0.0]], (1.0, 0.25))])
def test_a_number_and_points_give_all_groups_of_an_optimizer_one_rate(lr, expected):
    one = Learner(Module(q_network(0), DQNLoss(0.9, True, "l2"))).build()
    params = one.get_parameters(one.module["default"])
    groups = [{"params": params[:2], "lr": 7.0}, {"params": params[2:], "lr": 9.0}]
    optimizer = optim.SGD(groups, lr=1.0)
    one.register_optimizer(optimizer=optimizer, params=params, lr_or_lr_schedule=lr)
    assert [group["lr"] for group in optimizer.param_groups] == [expected[0]] * 2
    one.update_from_batch(transitions(), timesteps={"env_steps": 75})
    assert [group["lr"] for group in optimizer.param_groups] == [expected[1]] * 2


def test_env_steps_that_are_not_told_again_are_still_the_last_ones():
    one = learner(options={"default": {"lr": [[0, 1.0], [100, 0.0]]}})
    told = [one.update_from_batch(transitions(), timesteps=given)["default"]["lr/default"]
            for given in (None, {"env_steps": 50}, None, {"env_steps": 75}, {})]  # fmt: skip
    assert told == [1.0, 0.5, 0.5, 0.25, 0.25]


def test_a_torch_scheduler_moves_with_each_minibatch_and_leaves_other_optimizers_their_own():
    half = partial(ExponentialLR, gamma=0.5)
    one = by_layer({"body": {"lr_or_lr_schedule": half}, "head": {"lr_or_lr_schedule": [[0, 1.0], [100, 0.0]]}})
    metrics = one.update_from_batch(transitions(), timesteps={"env_steps": 25}, minibatch_size=2)
    assert one.get_optimizer(optimizer_name="body").param_groups[0]["lr"] == 0.125  # after three of them
    assert metrics["default"]["lr/head"] == 0.75


def test_torch_schedulers_of_two_optimizers_of_two_modules_go_on_each_for_itself():
    def scheduled(gamma):
        return {"lr_or_lr_schedule": partial(ExponentialLR, gamma=gamma)}

    one = by_layer({"body": scheduled(0.5), "head": scheduled(0.25)}, "left", "right")
    update(one, keyed("left", "right"))
    update(one, keyed("left"))
    rates = {f"{module_id}/{name}": optimizer.param_groups[0]["lr"]
             for module_id in one.module for name, optimizer in one.get_optimizers_for_module(module_id)}  # fmt: skip
    assert rates == {"left/body": 1 / 4, "left/head": 1 / 16, "right/body": 1 / 2, "right/head": 1 / 4}


def test_a_torch_scheduler_goes_with_its_module():
    stepped = []

    class Telling(ExponentialLR):
        def step(self, epoch=None):
            stepped.append(self)
            super().step(epoch)

    made = {"scheduler": partial(Telling, gamma=0.5)}
    one = learner("left", "right", options={"right": made})
    update(one, keyed("left", "right"))
    one.remove_module("right")
    one.add_module(module_id="right", module_spec=spec(1, **made))
    fresh = one.get_optimizer("right")
    stepped.clear()
    for _ in range(2):
        update(one, keyed("left", "right"))
    assert {scheduler.optimizer for scheduler in stepped} == {fresh}
    assert fresh.param_groups[0]["lr"] == 0.01 / 4


@pytest.mark.parametrize("options", [{}, {"compile": "none"}, {"precision": "bf16"}])
def test_nothing_holds_on_to_a_module_that_is_gone(options):
    one = learner("left", "right", **options)
    for _ in range(3):
        one.update_from_batch(parts("left", "right"))
    gone = [weakref.ref(one.module["right"].networks["q"].model), weakref.ref(one.get_optimizer("right"))]
    one.remove_module("right")
    one.update_from_batch({"left": transitions()})
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert "right" not in str(one.get_state())
    assert "right" not in one.metrics.reduce()


def test_the_numbers_that_are_trained_are_counted_anew_as_modules_come_and_go():
    def counted():
        metrics = one.update_from_batch(parts(*one.module))
        return {name: part["num_trainable_parameters"] for name, part in metrics.items()}

    each = 3 * 8 + 8 + 8 * 2 + 2
    one = learner("left", "right")
    one.add_module(module_id="new", module_spec=spec(2))
    assert counted() == {"left": each, "right": each, "new": each, "__all_modules__": 3 * each}
    one.remove_module("left")
    assert counted() == {"right": each, "new": each, "__all_modules__": 2 * each}


def test_an_optimizer_of_another_name_in_a_state_is_refused_and_nothing_is_ignored():
    one, other = by_layer(), learner()
    with pytest.raises(CheckpointError, match="optimizations of module 'default' are body, head; those saved are def"):
        one.set_state(other.get_state())
    state = learner("left", "right").get_state("rl_module")
    with pytest.raises(CheckpointError, match="has right, and there are the modules left, other"):
        learner("left", "other").set_state(state)


class WithALoss(nn.Module):
    """Brings a loss of its own, beside the one that is given."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.ones(()))

    def forward(self, observation):
        return self.value * observation[..., :2]

    def compute_self_supervised_loss(self, batch):
        return {"loss_own": self.value}


def test_a_loss_that_is_given_wins_over_the_one_that_a_network_brings():
    def told(loss):
        made = ModuleSpec(lambda: {"q": Approximation(WithALoss())}, loss, config())
        return update(Learner(made).build(), transitions()).keys()

    assert told(None) == {"loss/own"}
    assert told(DQNLoss(0.9, True, "l2")) == {"loss/q"}


def test_a_schedule_goes_on_while_its_module_stands_still():
    one = learner("left", "right", modules_to_train=["left"], options={"right": {"lr": [[0, 1.0], [100, 0.0]]}})
    for env_steps in (20, 50):
        one.update_from_batch(parts("left", "right"), timesteps={"env_steps": env_steps})
    one.modules_to_train = None
    assert one.update_from_batch(parts("left", "right"))["right"]["lr/default"] == 0.5
    assert one.get_optimizer("right").param_groups[0]["lr"] == 0.5


def test_targets_follow_the_updates_that_their_network_has_had():
    one = learner("left", "right", modules_to_train=["left"])
    networks = {module_id: module.networks["q"] for module_id, module in one.module.items()}

    def is_followed(module_id):
        pairs = zip(networks[module_id].model.parameters(), networks[module_id].target.model.parameters(), strict=True)
        return all(torch.equal(*pair) for pair in pairs)

    update(one, keyed("left", "right"))
    assert not is_followed("left")
    one.modules_to_train = None
    update(one, keyed("left", "right"))
    assert is_followed("left")  # after every second update of its own
    assert not is_followed("right")


def test_each_optimization_is_told_what_it_minimizes_and_no_other_gets_its_gradients():
    w, shared = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))
    first = Optimization(optim.SGD([w], lr=1.0))
    second = Optimization(optim.SGD([shared], lr=1.0))
    loss = (w + 1) * shared
    gradients = first.compute_gradients((loss * 3).sum())
    second.compute_gradients(((w + 1) * shared * 5).sum())  # a later pass through the same parameters
    assert [one.item() for one in gradients] == [3.0]
    assert w.grad is None
    assert shared.grad is None


def test_a_module_that_comes_back_begins_with_a_loss_scale_of_its_own():
    one = learner("left", "right", precision="fp16", options={"right": {"non_finite": "skip"}})
    batch = parts("left", "right")
    batch["right"]["observation"].fill_(float("inf"))
    scales = {module_id: told["train/loss_scale"] for module_id, told in one.update_from_batch(batch).items()
              if module_id in one.module}  # fmt: skip
    assert scales == {"left": 2.0**16, "right": 2.0**15}
    one.remove_module("right")
    one.add_module(module_id="right", module_spec=spec(1))
    assert one.update_from_batch(parts("left", "right"))["right"]["train/loss_scale"] == 2.0**16


def test_a_learner_that_nobody_needs_any_more_is_gone():
    one = learner("left", "right")
    one.update_from_batch(parts("left", "right"))
    gone = [weakref.ref(one), weakref.ref(one.module["left"].networks["q"].model)]
    del one
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


@pytest.mark.parametrize("typed", ["learner.clip=0", "learner.clip=-1", "learner.clip_by=l1"])
def test_a_bound_that_bounds_nothing_is_a_mistake_in_a_configuration(typed):
    with pytest.raises(Rejected, match=rf"{typed.split('=')[0]} = .*: expected (a number > 0|one of value)"):
        check(parse_arguments(["algo=dqn", "env=cartpole", typed]))


@pytest.mark.parametrize("options", [{"clip": 0}, {"optimizations": {"default": {"clip": 0}}}])
def test_a_bound_that_bounds_nothing_is_refused_in_python_too(options):
    with pytest.raises(ValueError, match="gradients cannot be clipped to 0: the bound must be > 0"):
        Learner(spec(**options)).build()
