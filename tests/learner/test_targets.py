from copy import deepcopy

import pytest
import torch
from torch import nn

from runner.learner.approximation import Approximation
from runner.learner.targets import FixedTarget, PolyakTarget, TargetNetwork, TrivialTarget
from runner.networks.mlp import MLP


class Counting(nn.Module):
    """A weight, a floating-point buffer and an integer one."""

    def __init__(self, weight=0.0, mean=0.0, count=0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.register_buffer("mean", torch.tensor([mean]))
        self.register_buffer("count", torch.tensor(count))

    def forward(self, x):
        return x * self.weight + self.mean

    def become(self, weight, mean, count):
        with torch.no_grad():
            self.weight.fill_(weight)
            self.mean.fill_(mean)
            self.count.fill_(count)


def values(target):
    model = target.model
    return model.weight.item(), model.mean.item(), model.count.item()


def followed(target, model=None):
    model = model or Counting()
    target.init(model)
    return model


def test_a_fixed_target_copies_after_exactly_n_updates_with_its_buffers():
    target = FixedTarget(3)
    model = followed(target)
    seen = []
    for update in range(1, 8):
        model.become(float(update), -float(update), update)
        target.update()
        seen.append(values(target))
    # copies at updates 3 and 6, each of what the network was then
    assert seen == [(0, 0, 0)] * 2 + [(3, -3, 3)] * 3 + [(6, -6, 6)] * 2


def test_a_polyak_target_averages_floats_and_copies_integers():
    target = PolyakTarget(0.25)
    model = followed(target, Counting(8.0, 4.0, 1))
    model.become(16.0, 0.0, 7)
    target.update()
    assert values(target) == (10.0, 3.0, 7)  # 3/4 * 8 + 1/4 * 16; 3/4 * 4 + 0
    target.update()
    assert values(target) == (11.5, 2.25, 7)  # 3/4 * 10 + 4; 3/4 * 3


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 8.0), (1.0, 16.0)])
def test_a_polyak_target_stays_at_rate_0_and_copies_at_rate_1(rate, expected):
    target = PolyakTarget(rate)
    followed(target, Counting(8.0)).become(16.0, 0.0, 0)
    target.update()
    assert values(target)[0] == expected


@pytest.mark.parametrize("target", [FixedTarget(1), PolyakTarget(0.5), TrivialTarget()])
def test_a_model_without_parameters_can_be_followed(target):
    target.init(nn.ReLU())
    target.update()
    assert target(torch.tensor([-1.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("target", [FixedTarget(1), PolyakTarget(1.0)])
def test_a_buffer_that_its_module_replaces_is_still_followed(target):
    model = followed(target)
    model.mean = torch.tensor([5.0])  # not written into: another tensor
    target.update()
    assert values(target)[1] == 5.0


@pytest.mark.parametrize("target", [FixedTarget(1), PolyakTarget(1.0)])
def test_a_parameter_whose_memory_is_exchanged_is_still_followed(target):
    model = followed(target)
    model.weight.data = torch.tensor([5.0])  # what Module.to(device) does
    target.update()
    assert values(target)[0] == 5.0


@pytest.mark.parametrize("target", [FixedTarget(2), PolyakTarget(0.5), TrivialTarget()])
def test_no_gradient_passes_through_a_target(target):
    followed(target, Counting(2.0))
    x = torch.tensor([3.0], requires_grad=True)
    assert not target(x).requires_grad


def test_a_copy_is_frozen_and_its_own():
    target = FixedTarget(100)
    model = followed(target, MLP((2,), [3], 1, "relu"))
    before = target(torch.ones(1, 2))
    assert not any(parameter.requires_grad for parameter in target.model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(target(torch.ones(1, 2)), before)
    assert not torch.equal(model(torch.ones(1, 2)), before)


def test_a_trivial_target_is_the_network_itself():
    target = TrivialTarget()
    model = followed(target)
    model.become(2.0, 1.0, 0)
    assert target(torch.tensor([3.0])).item() == 7.0
    assert target.model is model
    assert target.state_dict() == {}


def test_a_period_goes_on_where_it_was_saved():
    first, second = FixedTarget(3), FixedTarget(3)
    followed(first, Counting(1.0, 2.0, 3))
    model = followed(second)
    first.update(), first.update()
    second.load_state_dict(first.state_dict())
    assert values(second) == (1.0, 2.0, 3)
    model.become(9.0, 8.0, 7)
    second.update()  # the third of the period, not the first
    assert values(second) == (9.0, 8.0, 7)
    second.update()
    model.become(0.0, 0.0, 0)
    second.update()
    assert values(second) == (9.0, 8.0, 7)


def test_a_polyak_target_comes_back():
    first, second = PolyakTarget(0.5), PolyakTarget(0.5)
    followed(first, Counting(1.0, 2.0, 3))
    followed(second).become(3.0, 4.0, 5)
    second.load_state_dict(first.state_dict())
    second.update()
    assert values(second) == (2.0, 3.0, 5)


@pytest.mark.parametrize("target", [FixedTarget(3), PolyakTarget(0.25)])
def test_statistics_of_a_batch_norm_are_followed_like_a_written_out_loop_bit_for_bit(target):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    theirs, own = deepcopy(model), dict(deepcopy(model).state_dict())
    v = Approximation(model, torch.optim.SGD(model.parameters(), lr=0.1), target=target)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for update in range(1, 9):
        x = torch.randn(16, 3) + update
        v.reinforce(v(x).square().mean())
        optimizer.zero_grad()
        theirs(x).square().mean().backward()
        optimizer.step()
        for name, source in theirs.state_dict().items():
            if isinstance(target, PolyakTarget) and source.is_floating_point():
                own[name] = own[name] + 0.25 * (source - own[name])  # (1 - rate) * own + rate * source
            elif isinstance(target, PolyakTarget) or update % 3 == 0:
                own[name] = source.clone()
    assert own["1.num_batches_tracked"] == {FixedTarget: 6, PolyakTarget: 8}[type(target)]
    for name, value in target.model.state_dict().items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0)


class Mean(TargetNetwork):
    """A user's own: the mean of the weights after all updates."""

    def init(self, model):
        self.network, self.model, self.count = model, deepcopy(model).requires_grad_(False), 0

    def update(self):
        self.count += 1
        for own, source in zip(self.model.parameters(), self.network.parameters(), strict=True):
            own.lerp_(source.detach(), 1 / self.count)

    def state_dict(self):
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.count = state["count"]


def test_a_target_of_ones_own_needs_init_and_update_alone():
    def make():
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return Approximation(model, torch.optim.SGD(model.parameters(), lr=1.0), target=Mean())

    x = torch.ones(1, 1)
    v, again = make(), make()
    for _ in range(3):
        v.reinforce(v(x).sum())
    assert not v.target(x).requires_grad
    assert v.target(x).item() == pytest.approx(-(1 + 2 + 3) / 3)
    again.load_state_dict(v.state_dict())
    again.reinforce(again(x).sum())
    assert again.target(x).item() == pytest.approx(-(1 + 2 + 3 + 4) / 4)


@pytest.mark.parametrize(
    ("make", "words"), [(lambda: FixedTarget(0), "every 0 updates"), (lambda: PolyakTarget(1.5), "rate of 1.5")]
)
def test_a_number_that_no_target_can_have_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
