"""Recorded gradients are those of autograd, to the bit, and what cannot be recorded is left to autograd."""

import logging
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from runner.learner.approximation import Approximation
from runner.learner.gradients import Clip
from runner.learner.learner import Learner
from runner.learner.module import Module
from runner.learner.optimization import Optimization
from runner.learner.optimizers import adam
from runner.learner.targets import PolyakTarget
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP
from runner.spec import HooklineError


def transitions(size=16, seed=0, steps=None):
    generator = torch.Generator().manual_seed(seed)
    following = {
        "observation": torch.randn(size, 4, generator=generator),
        "reward": torch.randn(size, generator=generator),
        "terminated": torch.rand(size, generator=generator) < 0.2,
    }
    if steps is not None:
        following["steps"] = torch.full((size,), steps)
    now = {
        "observation": torch.randn(size, 4, generator=generator),
        "action": torch.randint(0, 2, (size,), generator=generator),
    }
    return TensorDict({**now, "next": TensorDict(following, [size])}, [size])


def make_learner(compile="trace", loss=None, network=None, kind=Learner, **optimization):
    torch.manual_seed(0)
    target = PolyakTarget(0.1)
    q = Approximation(network or MLP((4,), [8, 8], 2, "tanh"), target=target)
    moved = Optimization(adam(q.model.parameters(), lr=1e-2), targets=[target], **optimization)
    loss = loss or DQNLoss(0.9, double=True, loss_function="smooth_l1")
    return kind({"default": Module({"q": q}, loss, (moved,))}, compile=compile).build()


def update(learner, batch):
    metrics = learner.step(learner.compute_losses(batch), batch)
    learner.progress.updates += 1
    return {name: value.item() for name, value in metrics.items()}, batch.get("td_error", None)


def weights(learner):
    return [one.detach().clone() for one in learner.modules["default"].networks["q"].model.parameters()]


def recorders(learner):
    (found,) = learner._recorders.values()
    return found


def programs(learner):
    return recorders(learner)[-1]._programs


def assert_same_updates(one, other, batches):
    for batch in batches:
        ours, theirs = (update(learner, batch.clone()) for learner in (one, other))
        assert ours[0] == theirs[0]
        assert ours[1] is theirs[1] or torch.equal(ours[1], theirs[1])
    assert all(torch.equal(*pair) for pair in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("function", ["l2", "smooth_l1"])
def test_recorded_updates_are_those_of_autograd_to_the_bit(double, function):
    loss = DQNLoss(0.9, double, function)
    settings = {"clip": Clip(0.5), "loss_weights": {"q": 0.3}}
    traced = make_learner(loss=loss, **settings)
    assert_same_updates(traced, make_learner("none", loss, **settings), [transitions(seed=n) for n in range(30)])
    assert len(programs(traced)) == 1


def test_without_compile_nothing_is_recorded():
    assert recorders(make_learner("none")) == []


def test_batches_of_another_shape_get_a_program_of_their_own_and_too_many_are_left_to_autograd():
    batches = [transitions(size) for size in [*range(4, 15), *range(4, 15)]]
    traced = make_learner()
    assert_same_updates(traced, make_learner("none"), batches)
    assert len(programs(traced)) == 8


def test_a_key_that_comes_later_is_not_overlooked():
    traced, plain = make_learner(), make_learner("none")
    batches = [transitions(), transitions(), transitions(steps=3), transitions(steps=3), transitions()]
    assert_same_updates(traced, plain, batches)
    assert len(programs(traced)) == 2


def test_a_changed_hyper_parameter_counts_from_the_next_update_on():
    losses = [DQNLoss(0.9, double=True, loss_function="l2") for _ in range(2)]
    traced, plain = make_learner(loss=losses[0]), make_learner("none", losses[1])
    assert_same_updates(traced, plain, [transitions()] * 3)
    for loss in losses:
        loss.hyper_parameters["gamma"] = 0.5
    assert_same_updates(traced, plain, [transitions()] * 3)


def test_a_changed_weight_of_a_loss_counts_from_the_next_update_on():
    traced, plain = make_learner(), make_learner("none")
    assert_same_updates(traced, plain, [transitions()] * 3)
    for learner in (traced, plain):
        learner.modules["default"].optimizations[0].loss_weights["q"] = 0.3
    assert_same_updates(traced, plain, [transitions()] * 3)


class Sum(nn.Module):
    """Two parameters that have one gradient between them."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Parameter(torch.randn(2, 4)) for _ in range(2))

    def forward(self, x):
        return x @ (self.one + self.other).T


def test_a_gradient_that_two_parameters_share_is_clipped_once():
    network = Sum()
    traced, plain = (make_learner(kind, network=deepcopy(network), clip=Clip(0.01)) for kind in ("trace", "none"))
    assert_same_updates(traced, plain, [transitions(seed=n) for n in range(4)])
    assert programs(traced)


class Louder(nn.Linear):
    """Twice as large as long as it trains."""

    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


def test_a_network_that_is_switched_to_evaluation_is_used_as_it_is_then():
    traced, plain = (make_learner(kind, network=Louder(4, 2)) for kind in ("trace", "none"))
    copy_weights(plain, traced)
    assert_same_updates(traced, plain, [transitions()] * 2)
    assert programs(traced)
    for learner in (traced, plain):
        learner.modules["default"].networks["q"].model.eval()
    assert_same_updates(traced, plain, [transitions(seed=n) for n in range(3)])


def copy_weights(source, into):
    into.load_state_dict(source.state_dict())


def test_a_parameter_frozen_in_mid_run_stays_where_it_is():
    traced, plain = make_learner(), make_learner("none")
    assert_same_updates(traced, plain, [transitions()] * 2)
    for learner in (traced, plain):
        learner.modules["default"].networks["q"].model.layers[0].weight.requires_grad_(False)
    before = weights(traced)[0]
    assert_same_updates(traced, plain, [transitions()] * 2)
    assert torch.equal(weights(traced)[0], before)


def test_loaded_weights_are_those_the_program_uses():
    traced, plain = make_learner(), make_learner("none")
    assert_same_updates(traced, plain, [transitions()] * 2)
    state = make_learner(network=MLP((4,), [8, 8], 2, "tanh").requires_grad_(True)).state_dict()
    for learner in (traced, plain):
        learner.load_state_dict(state)
    assert_same_updates(traced, plain, [transitions(seed=n) for n in range(3)])


def dropping():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))


def test_random_layers_draw_the_same_numbers_and_recording_draws_none():
    results = []
    for compile in ("trace", "none"):
        torch.manual_seed(1)
        learner = make_learner(compile, network=dropping())
        torch.manual_seed(2)
        for n in range(4):
            update(learner, transitions(seed=n))
        results.append((weights(learner), torch.random.get_rng_state()))
    assert all(torch.equal(*pair) for pair in zip(results[0][0], results[1][0], strict=True))
    assert torch.equal(results[0][1], results[1][1])


class Branching(DQNLoss):
    """A loss whose course depends on the numbers in the batch."""

    def q(self, networks, batch, hyper_parameters):
        losses = super().q(networks, batch, hyper_parameters)
        return losses if losses["loss_q"] > 1e9 else TensorDict({"loss_q": losses["loss_q"] * 2}, [])


class Counting(DQNLoss):
    """A loss that is another one each time it is called."""

    calls = 0

    def q(self, networks, batch, hyper_parameters):
        self.calls += 1
        losses = super().q(networks, batch, hyper_parameters)
        return TensorDict({"loss_q": losses["loss_q"] * self.calls}, [])


@pytest.mark.parametrize("kind", [Branching, Counting])
def test_a_loss_that_is_no_pure_function_is_left_to_autograd_and_the_log_says_so(kind, caplog):
    traced = make_learner(loss=kind(0.9, double=False, loss_function="l2"))
    with caplog.at_level(logging.INFO):
        assert all(update(traced, transitions(seed=n))[0]["loss/q"] for n in range(3))
    assert programs(traced) == []
    assert caplog.text.count("updates are left to autograd") == 1


def test_networks_with_buffers_are_left_to_autograd():
    traced = make_learner(network=nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
    update(traced, transitions())
    assert programs(traced) == []


def test_a_loss_that_does_not_say_it_is_pure_is_not_recorded():
    loss = DQNLoss(0.9, double=False, loss_function="l2")
    loss.stackable = False
    assert recorders(make_learner(loss=loss)) == []


def test_a_learner_with_gradients_of_its_own_is_given_losses_with_a_graph():
    class Halving(Learner):
        def compute_gradients(self, optimization, losses):
            return [gradient / 2 for gradient in optimization.compute_gradients(losses)]

    update(make_learner(kind=Halving), transitions())


def replaced(losses):
    return TensorDict({"loss_q": losses["loss_q"] * 2}, [])


def set_anew(losses):
    return losses.set("loss_q", losses["loss_q"] * 0.1)


def changed_in_place(losses):
    losses["loss_q"].mul_(0.1)
    return losses


def with_one_more(losses):
    return losses.set("loss_more", torch.ones(()))


def without(losses):
    return losses.exclude("loss_q")


@pytest.mark.parametrize("change", [replaced, set_anew, changed_in_place, with_one_more, without])
def test_losses_that_were_changed_on_the_way_do_not_get_the_recorded_gradients(change):
    traced = make_learner()
    update(traced, transitions())
    batch = transitions()
    losses = traced.compute_losses(batch)
    with pytest.raises(HooklineError, match=r"'default' were changed after they were computed.*use compile=none"):
        traced.step(change(losses), batch)


def test_losses_of_a_callers_own_get_gradients_of_their_own():
    traced, plain = make_learner(), make_learner("none")
    for learner in (traced, plain):
        update(learner, transitions())
        batch = transitions()
        learner.compute_losses(batch)
        q = learner.modules["default"].networks["q"].model
        learner.step(TensorDict({"loss_own": q(batch["observation"]).pow(2).mean()}, []), batch)
    assert all(torch.equal(*pair) for pair in zip(weights(traced), weights(plain), strict=True))


class Halving(Learner):
    """Its gradients are changed at their source."""

    def compute_gradients(self, optimization, losses):
        return [gradient * 0.5 for gradient in super().compute_gradients(optimization, losses)]


def test_a_learner_with_gradients_of_its_own_is_asked_for_them():
    halved, plain = (make_learner(kind=kind, loss_weights={"q": 1.0}) for kind in (Halving, Learner))
    for learner in (halved, plain):
        moved = learner.modules["default"].optimizations[0]
        moved.optimizer = torch.optim.SGD(moved.parameters, lr=0.1)
    before = weights(plain)
    update(halved, transitions()), update(plain, transitions())
    for mine, other, start in zip(weights(halved), weights(plain), before, strict=True):
        torch.testing.assert_close(mine - start, (other - start) / 2, rtol=1e-4, atol=1e-7)


class Shifted(nn.Module):
    """Linear, of what a statistic that others change is subtracted from."""

    constant_buffers = True

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return self.linear(x - self.mean)


def with_statistics(compile):
    """Updates between which the statistics change, in place and, once, by being replaced."""
    torch.manual_seed(1)
    network = Shifted()
    learner = make_learner(compile, network=network)
    target = learner.modules["default"].networks["q"].target.model
    for n in range(12):
        for one in (network, target):
            one.mean.add_(0.1 * n)
            if n == 6:
                one.mean = one.mean + 1
        batch = transitions(seed=n)
        yield learner, update(learner, batch), [one.clone() for one in weights(learner)]


def test_buffers_that_calls_leave_alone_are_inputs_of_a_recorded_program():
    for (traced, ours, mine), (_, theirs, others) in zip(
        with_statistics("trace"), with_statistics("none"), strict=True
    ):
        assert ours[0] == theirs[0]
        assert all(torch.equal(*pair) for pair in zip(mine, others, strict=True))
        assert len(programs(traced)) == 1


def test_compiled_updates_follow_buffers_as_well():
    rounded = {"rtol": 1e-4, "atol": 1e-5}
    for (compiled, _, mine), (_, _, others) in zip(with_statistics("update"), with_statistics("none"), strict=True):
        for one, other in zip(mine, others, strict=True):
            torch.testing.assert_close(one, other, **rounded)
        assert len(recorders(compiled)[0]._programs) == 1


def test_buffers_that_nobody_vouches_for_are_left_to_autograd():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    learner = make_learner(network=network)
    update(learner, transitions())
    assert not programs(learner)
