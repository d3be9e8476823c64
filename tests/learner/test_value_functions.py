import pytest
import torch
from tensordict import TensorDict
from torch import nn

from runner.checkpoint.tree import flatten, unflatten
from runner.learner.approximation import Approximation, Identity
from runner.learner.checkpointers import PeriodicCheckpointer
from runner.learner.features import FeatureNetwork
from runner.learner.learner import Learner
from runner.learner.module import Module
from runner.learner.optimization import Optimization
from runner.learner.targets import FixedTarget, PolyakTarget, TrivialTarget
from runner.learner.value_functions import QContinuous, QNetwork, VNetwork
from tests.learner.small import linear, same_state, sgd


def weighted(*rows):
    """A linear layer without bias, with these weights."""
    model = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows))
    return model


def ways(approximation):
    return [approximation, approximation.no_grad, approximation.eval, approximation.target]


def q_network():
    return QNetwork(weighted([1.0], [10.0], [100.0]), target=FixedTarget(1))


def test_states_give_all_values_and_states_with_actions_one_each_by_every_way_of_asking():
    states = torch.tensor([[1.0], [2.0]])
    for ask in ways(q_network()):
        assert ask(states).tolist() == [[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]
        assert ask(states, torch.tensor([2, 0])).tolist() == [100.0, 2.0]


def test_values_of_states_have_the_shape_of_the_batch():
    v = VNetwork(weighted([2.0, 3.0]), target=PolyakTarget(0.5))
    for ask in ways(v):
        assert ask(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist() == [2.0, 5.0]
        assert ask(torch.ones(4, 3, 2)).shape == (4, 3)
        assert ask(torch.ones(1, 2)).shape == (1,)


def test_vectors_of_states_and_actions_are_one_input():
    q = QContinuous(weighted([1.0, 10.0, 100.0]), target=TrivialTarget())
    for ask in ways(q):
        assert ask(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])).tolist() == [321.0]


def test_an_action_can_be_improved_through_its_value():
    q, action = QContinuous(weighted([1.0, 2.0])), torch.zeros(3, 1, requires_grad=True)
    q(torch.ones(3, 1), action).sum().backward()
    assert action.grad.tolist() == [[2.0]] * 3


def test_a_way_of_asking_is_said_once_for_the_network_and_its_target():
    class Doubled(Approximation):
        def forward(self, model, states):
            return 2 * model(states)

    model = weighted([1.0])
    one = Doubled(model, sgd(model, 1.0), target=FixedTarget(2))
    x = torch.ones(1, 1)
    one.reinforce(one(x).sum())
    assert [ask(x).item() for ask in ways(one)] == [-2.0, -2.0, -2.0, 2.0]  # the weight is -1, the target's still 1


def test_a_loss_of_a_learner_asks_a_network_the_way_it_is_asked_alone():
    class SquaredValue:
        hyper_parameters, stackable = {}, True

        def __init__(self):
            self.terms = {"v": self.v}

        def v(self, networks, batch, hyper_parameters):
            states = batch["states"]
            assert networks["v"](states).shape == networks["v_target"](states).shape == (3,)
            error = networks["v"](states) - networks["v_target"](states) - 1
            return TensorDict({"loss_v": error.square().mean()})

    def learned(compile):
        model = weighted([2.0, 3.0])
        network = VNetwork(model, target=FixedTarget(2))
        optimization = Optimization(sgd(model), targets=(network.target,))
        learner = Learner({"default": Module({"v": network}, SquaredValue(), (optimization,))}, compile=compile).build()
        for number in range(4):
            batch = TensorDict({"states": torch.arange(6.0).reshape(3, 2) + number}, [3])
            learner.step(learner.compute_losses(batch), batch)
        return model.weight

    assert torch.equal(learned("none"), learned("trace"))


def test_an_identity_gives_back_what_it_gets_and_never_moves():
    same, x = Identity("cpu"), torch.randn(2, 3)
    for ask in ways(same):
        assert torch.equal(ask(x), x)
    assert same.device == torch.device("cpu")
    assert same.reinforce() is same.reinforce(torch.tensor(1.0)) is same.step() is same.zero_grad() is same
    assert (same.name, same.updates) == ("identity", 0)


def test_names_are_those_of_their_kind():
    made = (QNetwork, VNetwork, QContinuous, FeatureNetwork, Approximation)
    assert [kind(nn.ReLU()).name for kind in made] == ["q", "v", "q", "feature", "approximation"]
    assert [kind(nn.ReLU(), name="mine").name for kind in made] == ["mine"] * 5


def batches(count):
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.randn(8, 3, generator=generator), torch.randint(0, 2, (8,), generator=generator)


def learn(one, data):
    for states, actions in data:
        if isinstance(one, FeatureNetwork):
            one(states).square().mean().backward()
            one.reinforce()
        elif isinstance(one, QNetwork):
            one.reinforce((one(states, actions) - one.target(states, actions) - 1).square().mean())
        elif isinstance(one, QContinuous):
            vectors = actions.unsqueeze(-1).float()
            one.reinforce((one(states, vectors) - one.target(states, vectors) - 1).square().mean())
        else:
            one.reinforce((one(states) - one.target(states) - 1).square().mean())
    return one


def make(kind, target, folder, seed=0):
    inputs, outputs = (4 if kind is QContinuous else 3), (2 if kind is QNetwork else 1)
    model = nn.Sequential(nn.BatchNorm1d(inputs), *linear(inputs, 8, outputs, seed=seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    checkpointer = PeriodicCheckpointer(5, folder)
    settings = {"clip_grad": 0.5, "loss_scaling": 0.5, "scheduler": scheduler, "checkpointer": checkpointer}
    return kind(model, optimizer, target=target, **settings)


@pytest.mark.parametrize("target", [FixedTarget, PolyakTarget])
@pytest.mark.parametrize("kind", [Approximation, QNetwork, VNetwork, QContinuous, FeatureNetwork])
def test_learning_goes_on_bit_for_bit_through_a_state_without_pickles(kind, target, tmp_path):
    number = {FixedTarget: 4, PolyakTarget: 0.1}[target]
    data = list(batches(12))
    whole = learn(make(kind, target(number), tmp_path / "whole"), data)
    first = learn(make(kind, target(number), tmp_path / "first"), data[:7])
    skeleton, tensors = flatten(first.state_dict())
    saved = unflatten(skeleton, {name: tensor.clone() for name, tensor in tensors.items()})
    second = make(kind, target(number), tmp_path / "second", seed=1)
    second.load_state_dict(saved)
    learn(second, data[7:])
    assert same_state(whole.state_dict(), second.state_dict())
    assert not same_state(whole.state_dict(), first.state_dict())
    whole.checkpointer.load()  # both were written after the tenth update
    second.checkpointer.load()
    assert same_state(dict(whole.model.state_dict()), dict(second.model.state_dict()))
