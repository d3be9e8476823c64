from copy import deepcopy

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import StepLR

from runner.learner.approximation import Approximation, QNetwork
from runner.learner.optimization import NonFiniteError
from runner.learner.optimizers import adam
from runner.learner.targets import FixedTarget, PolyakTarget
from runner.metrics import Metrics
from runner.networks.mlp import MLP
from runner.schedules import Linear


def scalar(value=0.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


ONE = torch.ones(1, 1)


def bellman_loss(value, following, reward):
    return (value - (reward + 0.9 * following)).square().mean()


def written_out(net, data, rate, lr_of_update):
    """Twenty updates by hand: the reference for the test below. Returns the network and its target."""
    target = deepcopy(net)
    optimizer = optim.Adam(net.parameters(), lr=lr_of_update(0), fused=True)
    for update, (states, actions, rewards, next_states) in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = lr_of_update(update)
        with torch.no_grad():
            following = target(next_states).amax(-1)
        chosen = net(states)[torch.arange(len(actions)), actions]
        optimizer.zero_grad()
        bellman_loss(chosen, following, rewards).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            for own, source in zip(target.parameters(), net.parameters(), strict=True):
                own.lerp_(source, rate)
    return net, target


def random_data(updates=20, size=16):
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        states, following = (torch.randn(size, 3, generator=generator) for _ in range(2))
        actions = torch.randint(0, 4, (size,), generator=generator)
        yield states, actions, torch.randn(size, generator=generator), following


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_twenty_updates_equal_a_written_out_loop_bit_for_bit(kind):
    torch.manual_seed(0)
    net = MLP((3,), [16], 4, "relu")
    line, stairs = (lambda update: 0.01 * (1 - update / 40)), (lambda update: 0.01 * 0.5 ** (update // 5))
    lr_of_update = line if kind == "ours" else stairs
    expected, expected_target = written_out(deepcopy(net), random_data(), 0.1, lr_of_update)
    optimizer = adam(net.parameters(), lr=0.01)
    ours, torchs = (lambda initial, updates: line(updates)), StepLR(optimizer, step_size=5, gamma=0.5)
    scheduler = ours if kind == "ours" else torchs
    q = QNetwork(net, optimizer, target=PolyakTarget(0.1), clip_grad=0.5, scheduler=scheduler)
    for states, actions, rewards, next_states in random_data():
        q.reinforce(bellman_loss(q(states, actions), q.target(next_states).amax(-1), rewards))
    for own, other in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(own, other)
    for own, other in zip(q.target.model.parameters(), expected_target.parameters(), strict=True):
        assert torch.equal(own, other)
    assert q.updates == 20


def test_a_stand_alone_schedule_runs_over_updates():
    model = scalar()
    v = Approximation(model, optim.SGD(model.parameters(), lr=1.0), scheduler=Linear(4, 0.0, None))
    seen = []
    for _ in range(5):
        v.reinforce(v(ONE).sum())
        seen.append(model.weight.item())
    assert seen == [-1.0, -1.75, -2.25, -2.5, -2.5]  # rates 1, 3/4, 2/4, 1/4, 0


def test_step_after_an_own_backward_pass_equals_reinforce():
    def make(target):
        model = scalar(1.0)
        kwargs = {"target": target, "clip_grad": 0.5, "scheduler": Linear(4, 0.0, None)}
        return Approximation(model, optim.SGD(model.parameters(), lr=1.0), **kwargs)

    one, other = make(FixedTarget(2)), make(FixedTarget(2))
    for _ in range(3):
        one.reinforce(one(ONE).square().sum())
        other(ONE).square().sum().backward()
        assert other.step() is other
    assert torch.equal(one.model.weight, other.model.weight)
    assert torch.equal(one.target.model.weight, other.target.model.weight)
    assert one.updates == other.updates == 3


def test_loss_scaling_multiplies_the_gradient():
    model = scalar()
    v = Approximation(model, optim.SGD(model.parameters(), lr=1.0), loss_scaling=0.25)
    assert v.reinforce(v(ONE).sum()) is v
    assert model.weight.item() == -0.25


def test_clip_grad_zero_means_no_clipping():
    model = scalar()
    Approximation(model, optim.SGD(model.parameters(), lr=1.0), clip_grad=0).reinforce(1000 * model(ONE).sum())
    assert model.weight.item() == -1000.0


def test_eval_uses_evaluation_mode_and_restores_the_mode_of_each_layer():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model.train()
    model[1].eval()  # frozen statistics in a model that trains
    v = Approximation(model)
    x = torch.randn(64, 2)
    assert torch.equal(v.eval(x), v.eval(x))  # no dropout
    assert not v.eval(x).requires_grad
    assert [layer.training for layer in (model, *model)] == [True, True, False, True]
    model.eval()
    v.eval(x)
    assert not model[0].training


def test_the_mode_is_restored_after_an_error():
    model = scalar().train()
    with pytest.raises(RuntimeError):
        Approximation(model).eval(torch.ones(1, 5))
    assert model.training


def test_neither_no_grad_nor_the_target_gives_gradients():
    v = Approximation(scalar(2.0), target=FixedTarget(1))
    assert v(ONE).requires_grad
    for forward in (v.no_grad, v.target, Approximation(scalar(2.0)).target):
        assert not forward(ONE).requires_grad
        assert forward(ONE).item() == 2.0


def test_zero_grad_forgets_what_a_backward_pass_left():
    model = scalar()
    v = Approximation(model, optim.SGD(model.parameters(), lr=1.0))
    v(ONE).sum().backward()
    v.zero_grad().step()
    assert model.weight.item() == 0.0


def test_states_and_actions_pick_one_value_each():
    q = QNetwork(MLP((1,), [], 3, "relu"))
    with torch.no_grad():
        q.model.layers[0].weight.copy_(torch.tensor([[1.0], [10.0], [100.0]]))
        q.model.layers[0].bias.zero_()
    states = torch.tensor([[1.0], [2.0]])
    assert q(states).tolist() == [[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]
    assert q(states, torch.tensor([2, 0])).tolist() == [100.0, 2.0]


def test_without_an_optimizer_nothing_can_move_it():
    v = Approximation(scalar(), name="critic")
    for move in (lambda: v.reinforce(v(ONE).sum()), v.step):
        with pytest.raises(RuntimeError, match="critic"):
            move()


def test_metrics_go_to_the_writer():
    model, metrics = scalar(), Metrics()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    v = Approximation(model, optimizer, name="v", clip_grad=0.5, writer=metrics.add)
    v.reinforce(3 * v(ONE).sum() + 7)
    assert metrics.latest["loss/v"].item() == 7.0
    assert metrics.latest["grad_norm/v"].item() == 3.0
    assert not metrics.latest["loss/v"].requires_grad


def test_learning_goes_on_bit_for_bit_from_a_saved_state():
    def make(seed):
        torch.manual_seed(seed)
        net = MLP((3,), [8], 4, "tanh")
        schedule = Linear(20, 0.0, None)
        return QNetwork(net, adam(net.parameters(), lr=0.01), target=FixedTarget(3), clip_grad=0.5, scheduler=schedule)

    def learn(q, data):
        for states, actions, rewards, next_states in data:
            q.reinforce(bellman_loss(q(states, actions), q.target(next_states).amax(-1), rewards))

    data = list(random_data(12))
    whole, first, second = make(0), make(0), make(1)
    learn(whole, data)
    learn(first, data[:7])  # in the middle of the target's third period
    second.load_state_dict(first.state_dict())
    learn(second, data[7:])
    for pair in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(*pair)
    for pair in zip(whole.target.model.parameters(), second.target.model.parameters(), strict=True):
        assert torch.equal(*pair)
    assert second.updates == 12


def test_weights_that_are_no_numbers_are_not_saved():
    model = scalar()
    v = Approximation(model, optim.SGD(model.parameters(), lr=1.0))
    v.reinforce(v(ONE).sum() * float("nan"))
    with pytest.raises(NonFiniteError):
        v.state_dict()


def test_ten_lines_learn_the_values_of_a_chain():
    # Two states: "go" leads from 0 to 1 for 0 and from 1 to the end for 1; "stay" gives 0.
    # Hence q(1, go) = 1, q(1, stay) = 0.5 * 1, q(0, go) = 0.5 * 1, q(0, stay) = 0.5 * 0.5.
    torch.manual_seed(0)
    model = nn.Linear(2, 2, bias=False)
    q = QNetwork(model, optim.Adam(model.parameters(), lr=0.05), target=FixedTarget(10))
    states, actions = torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 1, 0, 1])  # 0 is "stay", 1 is "go"
    next_states, rewards = torch.eye(2)[[0, 1, 1, 0]], torch.tensor([0.0, 0.0, 0.0, 1.0])
    goes_on = torch.tensor([1.0, 1.0, 1.0, 0.0])
    for _ in range(400):
        values = rewards + 0.5 * goes_on * q.target(next_states).amax(-1)
        q.reinforce(nn.functional.mse_loss(q(states, actions), values))
    torch.testing.assert_close(q.no_grad(torch.eye(2)), torch.tensor([[0.25, 0.5], [0.5, 1.0]]), atol=0.01, rtol=0)


def test_a_backward_pass_of_the_callers_own_is_scaled_like_a_loss():
    def moved(by_hand):
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        q = Approximation(model, torch.optim.SGD(model.parameters(), lr=1.0), loss_scaling=0.1)
        loss = q(torch.full((1, 1), 2.0)).sum()
        if by_hand:
            loss.backward()
            q.step()
        else:
            q.reinforce(loss)
        return float(model.weight.detach())

    # The gradient is 2, a tenth of it 0.2: 1 - 0.2.
    assert moved(True) == moved(False) == pytest.approx(0.8)
