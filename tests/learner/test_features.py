import gc
import weakref
from copy import deepcopy

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

from runner.learner.approximation import Identity
from runner.learner.features import FeatureNetwork
from runner.learner.shared import NETWORKS
from runner.learner.targets import PolyakTarget
from runner.learner.value_functions import QNetwork, VNetwork
from runner.spec import CheckpointError
from tests.learner.small import copies, linear, same_state, sgd

ADAM = {"lr": 0.01, "fused": True}


def models():
    return linear(3, 8, 8, seed=1), linear(8, 4, seed=2), linear(8, 1, seed=3)


def made(value_scaling=1.0, **kwargs):
    trunk, q, v = models()
    return (
        FeatureNetwork(trunk, optim.Adam(trunk.parameters(), **ADAM), **kwargs),
        QNetwork(q, optim.Adam(q.parameters(), **ADAM), target=PolyakTarget(0.1), clip_grad=0.5),
        VNetwork(v, optim.Adam(v.parameters(), **ADAM), loss_scaling=value_scaling),
    )


def data(updates=20, size=16):
    generator = torch.Generator().manual_seed(4)
    for _ in range(updates):
        states, actions = torch.randn(size, 3, generator=generator), torch.randint(0, 4, (size,), generator=generator)
        yield states, actions, torch.randn(size, generator=generator)


def losses(q_values, values, returns):
    return F.mse_loss(q_values, returns), F.smooth_l1_loss(values, returns)


def learn(approximations, batches):
    features, q, v = approximations
    for states, actions, returns in batches:
        shared = features(states)
        q_loss, v_loss = losses(q(shared, actions), v(shared), returns)
        q.reinforce(q_loss)
        v.reinforce(v_loss)
        features.reinforce()
    return approximations


def written_out(batches, value_scaling):
    """The same by one backward pass from the sum of both losses."""
    trunk, q, v = models()
    optimizers = [optim.Adam(one.parameters(), **ADAM) for one in (trunk, q, v)]
    for states, actions, returns in batches:
        shared = trunk(states)
        q_loss, v_loss = losses(q(shared)[torch.arange(len(actions)), actions], v(shared)[:, 0], returns)
        for one in optimizers:
            one.zero_grad()
        (q_loss + value_scaling * v_loss).backward()
        nn.utils.clip_grad_norm_(q.parameters(), 0.5)
        for one in optimizers:
            one.step()
    return trunk, q, v


@pytest.mark.parametrize("value_scaling", [1.0, 0.25])
def test_two_heads_move_shared_features_like_one_backward_pass_from_both_losses(value_scaling):
    ours, theirs = learn(made(value_scaling), data()), written_out(data(), value_scaling)
    for approximation, model in zip(ours, theirs, strict=True):
        for own, other in zip(approximation.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):  # what a head's scaling does to the features is seen
        torch.testing.assert_close(copies(ours[0].model), copies(written_out(data(), 2.0)[0]), rtol=0, atol=1e-6)


def test_a_backward_pass_of_the_callers_own_leaves_the_same_on_the_features():
    ours, theirs = made(), learn(made(), data())
    features, q, v = ours
    for states, actions, returns in data():
        shared = features(states)
        sum(losses(q(shared, actions), v(shared), returns)).backward()
        q.step()
        v.step()
        features.reinforce()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(copies(one.model), copies(other.model), rtol=0, atol=1e-6)


class CannotGoBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a call that no gradient has reached was taken back")


class Trapped(nn.Module):
    """A layer whose backward pass fails for the inputs that were said to have none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, x):
        y = self.layer(x)
        return CannotGoBack.apply(y) if x.min() < 0 else y


def test_calls_that_no_gradient_has_reached_are_skipped():
    model = Trapped()
    features = FeatureNetwork(model, sgd(model, 1.0))
    one, skipped, other = features(torch.tensor([[2.0]])), features(torch.tensor([[-1.0]])), features(torch.ones(1, 1))
    assert skipped.requires_grad
    (one.sum() + 3 * other.sum()).backward()
    features.reinforce()
    assert model.layer.weight.item() == 1 - (2 + 3 * 1)
    assert features.waiting() == []


def test_without_any_gradient_nothing_moves_and_no_update_is_counted():
    model = linear(2, 2)
    features = FeatureNetwork(model, optim.SGD(model.parameters(), lr=1.0, weight_decay=0.5))
    before = copies(model)
    features(torch.ones(1, 2))
    assert features.reinforce() is features
    assert (copies(model)[0].equal(before[0]), features.updates, features.waiting()) == (True, 0, [])


def test_calls_without_gradients_leave_nothing_behind():
    model = linear(2, 2)
    features = FeatureNetwork(model, sgd(model))
    x = torch.ones(1, 2)
    for call in (features.no_grad, features.eval, features.target):
        assert not call(x).requires_grad
    with torch.no_grad():
        features(x)
    frozen = FeatureNetwork(linear(2, 2).requires_grad_(False))
    assert not frozen(x).requires_grad
    assert features.waiting() == frozen.waiting() == []


def test_gradients_of_several_calls_come_together_until_they_are_taken_back():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    features, head = FeatureNetwork(model, sgd(model, 1.0)), nn.Linear(1, 1, bias=False)
    nn.init.ones_(head.weight)
    v = VNetwork(head, optim.SGD(head.parameters(), lr=0.0))
    for state in (1.0, 10.0):
        v.reinforce(v(features(torch.tensor([[state]]))).sum())
    assert model.weight.item() == 0.0
    features.reinforce()
    assert (model.weight.item(), features.updates) == (-11.0, 1)
    features.reinforce()
    assert (model.weight.item(), features.updates) == (-11.0, 1)


def test_features_of_features_are_taken_back_through_both():
    lower, upper, head = linear(2, 3, seed=1), linear(3, 3, seed=2), linear(3, 1, seed=3)
    chained = deepcopy(nn.Sequential(lower, upper, head))
    below, above, v = FeatureNetwork(lower, sgd(lower)), FeatureNetwork(upper, sgd(upper)), VNetwork(head, sgd(head))
    x = torch.randn(5, 2)
    v.reinforce(v(above(below(x))).square().sum())
    above.reinforce()
    below.reinforce()
    chained(x).square().sum().backward()
    sgd(chained).step()
    torch.testing.assert_close(copies(nn.Sequential(lower, upper, head)), copies(chained), rtol=0, atol=1e-6)


def test_a_loss_of_something_else_leaves_waiting_features_alone():
    features, q, v = made()
    states, actions, returns = next(data())
    shared = features(states)
    apart = linear(3, 1)
    VNetwork(apart, sgd(apart)).reinforce(apart(states).sum())
    assert shared.grad is None
    q.reinforce(losses(q(shared, actions), v(shared), returns)[0])
    assert shared.grad is not None


def test_heads_over_features_that_are_their_inputs_need_no_other_code():
    _, q, v = models()
    plain = Identity("cpu"), QNetwork(q, sgd(q)), VNetwork(v, sgd(v))
    before = copies(q), copies(v)
    learn(plain, [(torch.randn(4, 8), torch.tensor([0, 1, 2, 3]), torch.ones(4))])
    assert not same_state(before[0], copies(q))
    assert not same_state(before[1], copies(v))


def test_zero_grad_forgets_what_waits():
    features, q, v = made()
    states, actions, returns = next(data())
    shared = features(states)
    q.reinforce(losses(q(shared, actions), v(shared), returns)[0])
    before = copies(features.model)
    assert features.zero_grad() is features
    features.reinforce()
    assert same_state(before, copies(features.model))


def test_features_are_clipped_and_logged_like_all_else():
    model, rows = nn.Linear(1, 1, bias=False), []
    nn.init.zeros_(model.weight)
    features = FeatureNetwork(model, sgd(model, 1.0), clip_grad=0.5, writer=rows.append)
    features(torch.full((1, 1), 8.0)).sum().backward()
    features.reinforce()
    assert model.weight.item() == pytest.approx(-0.5)
    assert [{name: float(value) for name, value in row.items()} for row in rows] == [{"grad_norm/feature": 8.0}]


def test_learning_goes_on_bit_for_bit_from_a_saved_state():
    batches = list(data(12))
    whole, first, second = learn(made(), batches), learn(made(), batches[:7]), learn(made(), batches[9:])
    second[0](batches[0][0])  # waits for nothing, and is forgotten
    for saved, loaded in zip(first, second, strict=True):
        loaded.load_state_dict(saved.state_dict())
    assert second[0].waiting() == []
    learn(second, batches[7:])
    for one, other in zip(whole, second, strict=True):
        assert same_state(one.state_dict(), other.state_dict())


def test_gradients_that_wait_are_not_silently_left_out_of_a_saved_state():
    features, _, _ = made()
    shared = features(torch.randn(2, 3))
    features.state_dict()  # a call that nothing has come of yet would be skipped, too
    shared.sum().backward()
    with pytest.raises(CheckpointError, match=r"feature.reinforce\(\)"):
        features.state_dict()
    features.reinforce().state_dict()


def test_features_that_nobody_can_take_back_any_more_are_not_kept():
    features, _, _ = made()
    features(torch.randn(2, 3))
    assert features in NETWORKS
    gone = weakref.ref(features)
    del features
    gc.collect()
    assert gone() is None
