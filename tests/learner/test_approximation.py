from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import StepLR

from runner.checkpoint.tree import flatten, unflatten
from runner.learner.approximation import Approximation
from runner.learner.checkpointers import DummyCheckpointer, PeriodicCheckpointer
from runner.learner.optimization import NonFiniteError
from runner.learner.optimizers import adam
from runner.learner.targets import FixedTarget, PolyakTarget, TrivialTarget
from runner.learner.value_functions import QNetwork
from runner.metrics import Metrics
from runner.networks.mlp import MLP
from runner.schedules import Linear
from tests.learner.small import same_state


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


def test_without_an_optimizer_nothing_can_move_it():
    v = Approximation(scalar(), name="critic")
    for move in (lambda: v.reinforce(v(ONE).sum()), v.step):
        with pytest.raises(RuntimeError, match="critic"):
            move()


SGD = partial(optim.SGD, lr=1.0)


def test_the_defaults_are_no_target_no_file_no_clipping_and_the_device_of_the_model():
    model = scalar()
    v = Approximation(model)
    assert (type(v.target), type(v.checkpointer)) == (TrivialTarget, DummyCheckpointer)
    assert (v.target.model, v.model, v.name, v.optimization, v.writer) == (model, model, "approximation", None, None)
    assert (v.loss_scaling, v.updates, v.device) == (1, 0, torch.device("cpu"))
    assert Approximation(model, SGD(model.parameters())).optimization.clip is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(1, 1, device="meta"), "meta"),
        (nn.BatchNorm1d(1, affine=False, device="meta"), "meta"),  # buffers alone
        (nn.ReLU(), "cpu"),
    ],
)
def test_the_device_is_where_the_model_is(model, expected):
    assert Approximation(model).device == torch.device(expected)


def test_a_device_that_is_given_is_where_the_model_goes():
    v = Approximation(nn.Linear(1, 1), device="meta")
    assert (v.device, v.model.weight.device, v.target.model.weight.device) == (torch.device("meta"),) * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scheduler": Linear(4, 0.0, None)}, "scheduler"),
        ({"clip_grad": 0.5}, "clip_grad"),
        ({"loss_scaling": 0.5, "writer": print}, "writer and loss_scaling"),
        ({"checkpointer": PeriodicCheckpointer(1)}, "checkpointer"),
    ],
)
def test_what_belongs_to_updates_is_refused_where_there_are_none(given, words):
    with pytest.raises(ValueError, match=f"critic has no optimizer.*{words}"):
        Approximation(scalar(), name="critic", **given)


class Told:
    """Writes down who was called, and what the weight was then."""

    def __init__(self):
        self.events, self.model = [], scalar()

    def __call__(self, name):
        self.events.append((name, self.model.weight.item()))


def test_an_update_clips_steps_schedules_follows_saves_and_then_tells():
    told = Told()

    class Optimizer(optim.SGD):
        def step(self, closure=None):
            told(f"optimizer {self.param_groups[0]['params'][0].grad.item():.2f}")
            return super().step(closure)

    class Scheduler(StepLR):
        def step(self, epoch=None):
            told("scheduler")
            super().step(epoch)

    class Target(TrivialTarget):
        def update(self):
            told("target")

    class Checkpoint(DummyCheckpointer):
        def update(self):
            told("checkpointer")

    optimizer = Optimizer(told.model.parameters(), lr=1.0)
    scheduler = Scheduler(optimizer, 1, 0.5)
    told.events.clear()  # a torch scheduler steps once when it is made
    rows = []

    def write(metrics):
        told("writer")
        rows.append({name: float(value) for name, value in metrics.items()})

    parts = {"scheduler": scheduler, "target": Target(), "checkpointer": Checkpoint(), "writer": write}
    v = Approximation(told.model, optimizer, clip_grad=0.25, name="v", **parts)
    v.reinforce(8 * v(ONE).sum())
    names = ["optimizer 0.25", "scheduler", "target", "checkpointer", "writer"]
    assert [name for name, _ in told.events] == names
    assert [weight for _, weight in told.events] == pytest.approx([0, -0.25, -0.25, -0.25, -0.25])
    (8 * v(ONE).sum()).backward()
    v.step()
    assert [name for name, _ in told.events[5:]] == names
    assert told.model.weight.grad is None
    # Each row has the rate that its step was taken with; a step of the caller's own knows no loss.
    assert [row["lr/v"] for row in rows] == [1.0, 0.5]
    assert [sorted(row) for row in rows] == [["grad_norm/v", "loss/v", "lr/v"], ["grad_norm/v", "lr/v"]]


def test_the_loss_is_logged_as_it_was_given():
    model, rows = scalar(), []
    v = Approximation(model, SGD(model.parameters()), loss_scaling=0.25, writer=rows.append)
    v.reinforce(v(ONE).sum() + 8)
    assert rows[0]["loss/approximation"].item() == 8.0


def test_a_model_without_parameters_can_be_asked_saved_and_loaded():
    v, x = Approximation(nn.ReLU(), target=PolyakTarget(0.5)), torch.tensor([-1.0, 2.0])
    for ask in (v, v.no_grad, v.eval, v.target):
        assert ask(x).tolist() == [0.0, 2.0]
    v.zero_grad()
    Approximation(nn.ReLU(), target=PolyakTarget(0.5)).load_state_dict(v.state_dict())


def test_what_is_clipped_and_forgotten_is_all_that_the_optimizer_moves():
    # sqrt(3^2 + 4^2) = 5, of which the bound is a fifth; the model alone has a norm of 3.
    model, temperature = scalar(), nn.Parameter(torch.zeros(()))
    v = Approximation(model, SGD([*model.parameters(), temperature]), clip_grad=1)
    v.reinforce(3 * v(ONE).sum() + 4 * temperature)
    assert [model.weight.item(), temperature.item()] == pytest.approx([-0.6, -0.8])
    (v(ONE).sum() + temperature).backward()
    v.zero_grad()
    assert model.weight.grad is temperature.grad is None


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_scaled_loss_is_a_written_out_loop_bit_for_bit(by_hand):
    torch.manual_seed(0)
    net = MLP((3,), [16], 1, "tanh")
    theirs = deepcopy(net)
    v = Approximation(net, adam(net.parameters(), lr=0.01), loss_scaling=0.1, clip_grad=0.05)
    optimizer = optim.Adam(theirs.parameters(), lr=0.01, fused=True)
    for states, _, rewards, _ in random_data():
        loss = (v(states).squeeze(-1) - rewards).square().mean()
        if by_hand:
            loss.backward()
            v.step()
        else:
            v.reinforce(loss)
        optimizer.zero_grad()
        (theirs(states).squeeze(-1) - rewards).square().mean().backward()
        for parameter in theirs.parameters():
            parameter.grad *= 0.1
        assert nn.utils.clip_grad_norm_(theirs.parameters(), 0.05) > 0.05  # it does bound something
        optimizer.step()
    for own, other in zip(net.parameters(), theirs.parameters(), strict=True):
        # A loss that is scaled before its backward pass is rounded elsewhere.
        torch.testing.assert_close(own, other, rtol=0, atol=0 if by_hand else 1e-6)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 5]),
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1.0, 12),  # sets the momentum, too
        lambda optimizer: lr_scheduler.CyclicLR(optimizer, 0.1, 1.0, 3),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update),
        lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.ConstantLR(optimizer, 0.1, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)], [2]
        ),
    ],
)
@pytest.mark.parametrize("kind", [partial(optim.SGD, momentum=0.9), optim.Adam])
def test_schedulers_of_torch_go_on_bit_for_bit(make, kind):
    def made():
        model = scalar(1.0)
        optimizer = kind(model.parameters(), lr=0.5)
        return Approximation(model, optimizer, scheduler=make(optimizer))

    def learn(v, updates):
        for update in updates:
            v.reinforce((v(ONE) - update).square().sum())

    whole, first, second = made(), made(), made()
    learn(whole, range(9))
    learn(first, range(4))
    skeleton, tensors = flatten(first.state_dict())
    second.load_state_dict(unflatten(skeleton, {name: tensor.clone() for name, tensor in tensors.items()}))
    learn(second, range(4, 9))
    assert same_state(whole.state_dict(), second.state_dict())
    assert whole.optimization.lr == second.optimization.lr


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
