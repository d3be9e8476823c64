import pytest
import torch
from tensordict import TensorDict
from torch import nn, optim

from runner.learner.approximation import Approximation
from runner.learner.gradients import Clip
from runner.learner.learner import Learner
from runner.learner.module import Module
from runner.learner.optimization import NonFiniteError, Optimization
from runner.learner.optimizers import adam
from runner.learner.targets import FixedTarget, PolyakTarget
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP
from runner.spec import Progress
from tests.learner.parts import transitions


class Scalar(nn.Module):
    """A network that is one number."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self):
        return self.weight * 1.0


class Terms:
    """A loss made of plain functions of the networks ``a`` and ``b``; records the order of evaluation."""

    def __init__(self, **functions):
        self.hyper_parameters = {}
        self.calls = []
        self.terms = {name: self._term(name, function) for name, function in functions.items()}

    def _term(self, name, function):
        def term(networks, batch, hyper_parameters):
            self.calls.append((name, networks["a"]().item(), networks["b"]().item()))
            return TensorDict({f"loss_{name}": function(networks)}, [])

        return term


def product(networks):
    return networks["a"]() * networks["b"]()


def descending(network, **kwargs):
    return Optimization(optim.SGD(network.model.parameters(), lr=0.1), **kwargs)


def staged(every=1, target=None):
    """Loss ``first = a * b`` moves a, then ``second = a * b`` moves b. a = 2, b = 3, learning rate 0.1."""
    networks = {"a": Approximation(Scalar(2.0), target=target), "b": Approximation(Scalar(3.0))}
    loss = Terms(first=product, second=product)
    optimizations = (
        descending(networks["b"], name="second", terms=("second",)),
        descending(networks["a"], name="first", terms=("first",), every=every, targets=[target] if target else []),
    )
    return Learner({"default": Module(networks, loss, optimizations[::-1])}).build(), networks, loss


def values(networks):
    return [round(network.model.weight.item(), 5) for network in networks.values()]


def update(learner, batch=None):
    batch = TensorDict(batch_size=[]) if batch is None else batch
    metrics = learner.step(learner.compute_losses(batch), batch)
    learner.progress.updates += 1
    return metrics


def test_the_second_optimization_sees_what_the_first_has_moved():
    learner, networks, loss = staged()
    metrics = update(learner)
    # First a = 2 - 0.1 * b = 1.7, then b = 3 - 0.1 * a = 2.83: with both losses computed before, b would be 2.8.
    assert values(networks) == [1.7, 2.83]
    assert [name for name, *_ in loss.calls] == ["first", "second"]
    assert metrics["loss/first"].item() == 6.0  # 2 * 3
    assert metrics["loss/second"].item() == pytest.approx(5.1)  # 1.7 * 3, not 6

    a, b = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    gradients = torch.autograd.grad(a * b, [a, b])  # the wrong way: both on the old weights
    assert (3.0 - 0.1 * gradients[1]).item() == pytest.approx(2.8)


def test_losses_are_computed_before_any_weight_moves():
    learner, networks, loss = staged()
    losses = learner.compute_losses(TensorDict(batch_size=[]))
    assert list(losses.keys()) == ["loss_first"]
    assert values(networks) == [2.0, 3.0]
    assert [name for name, *_ in loss.calls] == ["first"]


def test_a_delayed_optimization_is_evaluated_and_applied_only_when_due():
    target = PolyakTarget(0.5)
    learner, networks, loss = staged(every=2, target=target)
    seen = []
    for _ in range(4):
        update(learner)
        seen.append((*values(networks), round(target.model.weight.item(), 5)))
    # updates 0 and 2 move a and its target, all of them b
    # 0: a = 2 - 0.3 = 1.7,           b = 3 - 0.17 = 2.83,       target (2 + 1.7) / 2 = 1.85
    # 1:                              b = 2.83 - 0.17 = 2.66
    # 2: a = 1.7 - 0.266 = 1.434,     b = 2.66 - 0.1434 = 2.5166, target (1.85 + 1.434) / 2 = 1.642
    # 3:                              b = 2.5166 - 0.1434 = 2.3732
    assert seen == [(1.7, 2.83, 1.85), (1.7, 2.66, 1.85), (1.434, 2.5166, 1.642), (1.434, 2.3732, 1.642)]
    assert [name for name, *_ in loss.calls] == ["first", "second", "second", "first", "second", "second"]


def test_an_update_in_which_nothing_is_due_moves_nothing():
    network = Approximation(Scalar(1.0))
    loss = Terms(only=lambda networks: networks["a"]())
    learner = Learner({"default": Module({"a": network, "b": network}, loss, (descending(network, every=2),))}).build()
    update(learner)
    moved = network.model.weight.item()
    assert moved != 1.0
    assert learner.step(learner.compute_losses(TensorDict(batch_size=[])), TensorDict(batch_size=[])) == {}
    assert network.model.weight.item() == moved


def test_an_optimization_without_terms_minimizes_all_of_them():
    network = Approximation(Scalar(1.0))
    loss = Terms(one=lambda networks: networks["a"]() * 2, other=lambda networks: networks["a"]() * 3)
    learner = Learner({"default": Module({"a": network, "b": network}, loss, (descending(network),))}).build()
    assert update(learner).keys() == {"loss/one", "loss/other"}
    assert network.model.weight.item() == pytest.approx(0.5)  # 1 - 0.1 * (2 + 3)


def q_learner(seed=0, target=None, progress=None, **kwargs):
    torch.manual_seed(seed)
    target = target or FixedTarget(3)
    q = Approximation(MLP((3,), [8], 2, "relu"), target=target)
    optimization = Optimization(adam(q.model.parameters(), lr=0.01), targets=(target,), **kwargs)
    return Learner({"default": Module({"q": q}, DQNLoss(0.9, True, "smooth_l1"), (optimization,))}, progress).build()


def weights(learner, name="q"):
    return [one.detach().clone() for one in learner.modules["default"].networks[name].model.parameters()]


def equal(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_per_sample_outputs_go_into_the_batch_and_losses_do_not():
    batch = transitions(size=4)
    losses = q_learner().compute_losses(batch)
    assert torch.equal(batch["td_error"], losses["td_error"])
    assert batch["td_error"].shape == (4,)
    assert not [key for key in batch.keys() if key.startswith("loss")]


def test_a_number_for_the_whole_batch_becomes_a_metric():
    linear = nn.Linear(1, 1)

    def loss_module(batch):
        value = linear(batch["x"])
        return {"loss_v": value.square().mean(), "entropy": value.mean(), "error": value.detach().squeeze(-1)}

    batch = TensorDict({"x": torch.ones(5, 1)}, [5])
    metrics = update(Learner.from_loss_module(loss_module, optim.SGD(linear.parameters(), lr=0.1)), batch)
    assert metrics.keys() == {"loss/v", "train/entropy"}
    assert not metrics["train/entropy"].requires_grad
    assert set(batch.keys()) == {"x", "error"}


class Observing(Learner):
    """Overrides the three methods that a user of RLlib's learner would."""

    def compute_gradients(self, optimization, losses):
        return [gradient * 0 + 8.0 for gradient in super().compute_gradients(optimization, losses)]

    def postprocess_gradients(self, optimization, gradients):
        for gradient in gradients:
            gradient.div_(2)
        return {**super().postprocess_gradients(optimization, gradients), "mine": torch.tensor(1.0)}

    def apply_gradients(self, optimization, gradients):
        super().apply_gradients(optimization, [gradient / 2 for gradient in gradients])


def test_overriding_what_happens_to_gradients_takes_effect():
    network = Approximation(Scalar(1.0))
    loss = Terms(only=lambda networks: networks["a"]())
    learner = Observing({"default": Module({"a": network, "b": network}, loss, (descending(network),))}).build()
    metrics = update(learner)
    assert network.model.weight.item() == pytest.approx(0.8)  # 1 - 0.1 * 8 / 2 / 2, where the gradient itself is 1
    assert metrics["mine"].item() == 1.0


def test_metrics_hold_losses_and_gradient_norms_without_a_graph():
    metrics = update(q_learner(clip=Clip(1.0), name="q"), transitions(size=4))
    assert metrics.keys() == {"loss/q", "grad_norm/q"}
    assert not any(value.requires_grad for value in metrics.values())


def test_the_schedule_follows_the_counter_of_env_steps():
    progress = Progress()
    learner = q_learner(progress=progress, schedule=lambda initial, env_steps: initial / (1 + env_steps), name="q")
    progress.env_steps = 4
    update(learner, transitions(size=4))
    assert learner.row_metrics() == {"lr/q": pytest.approx(0.01 / 5)}


class SquaredError(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, batch):
        return {"loss_v": (self.linear(batch["x"]) - 1).square().mean()}


def test_a_plain_module_is_a_loss():
    module = SquaredError()
    learner = Learner.from_loss_module(module, optim.SGD(module.parameters(), lr=0.25))
    metrics = update(learner, TensorDict({"x": torch.ones(3, 1)}, [3]))
    assert metrics["loss/v"].item() == 1.0  # (0 - 1)^2
    assert module.linear.weight.item() == 0.5  # gradient 2 * (0 - 1) = -2
    assert learner.get_state()["rl_module"]["default"]["loss_module"]["model"]["linear.weight"].item() == 0.5


def test_a_plain_function_is_a_loss_and_the_weights_it_moves_are_saved():
    def make():
        module = SquaredError()
        return module, Learner.from_loss_module(lambda batch: module(batch), optim.SGD(module.parameters(), lr=0.25))

    batch = TensorDict({"x": torch.ones(3, 1)}, [3])
    module, learner = make()
    update(learner, batch)
    assert module.linear.weight.item() == 0.5
    again, resumed = make()
    resumed.set_state(learner.get_state())
    assert again.linear.weight.item() == 0.5
    update(resumed, batch)
    assert again.linear.weight.item() == 0.75  # gradient 2 * (0.5 - 1) = -1
    assert module.linear.weight.item() == 0.5


def test_an_optimization_may_take_the_place_of_the_optimizer():
    module = SquaredError()
    optimization = Optimization(optim.SGD(module.parameters(), lr=0.25), name="v", clip=Clip(1.0))
    metrics = update(Learner.from_loss_module(module, optimization), TensorDict({"x": torch.ones(3, 1)}, [3]))
    assert module.linear.weight.item() == pytest.approx(0.25)  # the gradient of -2 is clipped to -1
    assert metrics["grad_norm/v"].item() == 2.0


def test_a_tensordict_of_losses_is_taken_as_it_is():
    module = SquaredError()
    learner = Learner.from_loss_module(
        lambda batch: TensorDict(module(batch), []), optim.SGD(module.parameters(), lr=0.25)
    )
    update(learner, TensorDict({"x": torch.ones(3, 1)}, [3]))
    assert module.linear.weight.item() == 0.5


def two_modules():
    modules = {}
    for seed, module_id in enumerate(("left", "right")):
        (modules[module_id],) = q_learner(seed).modules.values()
    return Learner(modules).build()


def test_two_modules_learn_each_from_its_own_part_of_the_batch():
    learner = two_modules()
    alone = [q_learner(seed) for seed in (0, 1)]
    for number in range(4):
        parts = [transitions(10 + number, size=4), transitions(20 + number)]
        batch = TensorDict({"left": parts[0].clone(), "right": parts[1].clone()}, [])
        losses = learner.compute_losses(batch)
        assert batch["left", "td_error"].shape == (4,)
        assert batch["right", "td_error"].shape == (6,)
        metrics = learner.step(losses, batch)
        learner.progress.updates += 1
        expected = [update(one, part) for one, part in zip(alone, parts, strict=True)]
        assert metrics["left/loss/q"] == expected[0]["loss/q"]
        assert metrics["right/loss/q"] == expected[1]["loss/q"]
    for module_id, one in zip(("left", "right"), alone, strict=True):
        own = list(learner.modules[module_id].networks["q"].model.parameters())
        assert equal(own, weights(one))
    assert learner.row_metrics().keys() == {"left/lr/default", "right/lr/default"}


def test_a_single_module_may_have_any_name():
    (module,) = q_learner().modules.values()
    learner, expected = Learner({"agent": module}).build(), q_learner()
    assert update(learner, transitions(size=4))["loss/q"] == update(expected, transitions(size=4))["loss/q"]
    assert learner.get_state()["rl_module"].keys() == {"agent"}


def test_learning_goes_on_bit_for_bit_from_a_saved_state():
    whole, first, second = q_learner(0), q_learner(0), q_learner(1)
    batches = [transitions(number) for number in range(9)]
    for batch in batches:
        update(whole, batch)
    for batch in batches[:4]:  # one update into the target's second period
        update(first, batch)
    second.set_state(first.get_state())
    assert not equal(weights(second), weights(whole))
    for batch in batches[4:]:
        update(second, batch)
    assert equal(weights(second), weights(whole))
    targets = [list(one.modules["default"].networks["q"].target.model.parameters()) for one in (whole, second)]
    assert equal(*targets)


def test_two_optimizations_of_one_name_are_refused():
    networks = {"a": Approximation(Scalar(1.0)), "b": Approximation(Scalar(2.0))}
    same_name = [descending(network, name="critic") for network in networks.values()]
    with pytest.raises(ValueError, match=r"name of its own.*default/critic"):
        Learner({"default": Module(networks, Terms(), same_name)}).build()


def test_a_parameter_that_two_optimizations_would_move_is_refused():
    networks = {"a": Approximation(Scalar(1.0))}
    both = [descending(networks["a"], name=name) for name in ("critic", "actor")]
    with pytest.raises(ValueError, match="default/critic and default/actor would both move"):
        Learner({"default": Module(networks, Terms(), both)}).build()


def test_a_target_that_two_optimizations_would_move_is_refused():
    target = FixedTarget(1)
    networks = {"a": Approximation(Scalar(1.0), target=target), "b": Approximation(Scalar(2.0))}
    both = [descending(network, name=name, targets=[target]) for name, network in networks.items()]
    with pytest.raises(ValueError, match="would both move the same FixedTarget"):
        Learner({"default": Module(networks, Terms(), both)}).build()


def test_weights_that_are_no_numbers_are_noticed():
    learner = q_learner(name="q")
    learner.check_finite()
    batch = transitions(size=4)
    batch["next", "reward"][0] = float("nan")
    update(learner, batch)
    with pytest.raises(NonFiniteError, match="'q'"):
        learner.check_finite()
