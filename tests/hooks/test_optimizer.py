import pytest
import torch
from torch import nn

from hooks.optimizer import OptimizerHook
from runner.learner.optimization import Optimization
from runner.spec import NEXT_REWARD, OBSERVATION, HooklineError
from runner.trainer import Trainer
from tests.toys import collector, same_tree, trainer


class Two(nn.Module):
    """Two linear models; ``loss_b`` looks at the weights of ``a``."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def forward(self, batch):
        a, b = (model(batch[OBSERVATION]).squeeze(-1) for model in (self.a, self.b))
        return {
            "loss_a": (a - batch[NEXT_REWARD]).square().mean(),
            "loss_b": (b - a.detach()).square().mean(),
            "loss": a.sum() * 1e6,
        }


def adams(loss):
    return torch.optim.Adam(loss.a.parameters(), lr=0.1), torch.optim.SGD(loss.b.parameters(), lr=0.05, momentum=0.9)


def hooked(total_frames, order=("a", "b"), **options):
    torch.manual_seed(0)
    loss = Two()
    one = Trainer(collector=collector(), loss_module=loss, total_frames=total_frames, **options)
    made = dict(zip(("a", "b"), adams(loss), strict=True))
    every = {"a": None, "b": {"updates": 3}}
    for name in order:
        OptimizerHook(optimization=made[name], terms=[name], every=every[name]).register(one, name)
    return one, loss


def by_hand(total_frames):
    """The same written out: ``b`` in every third update, on the weights that ``a`` has just been given."""
    loss, playing = Two(), collector()
    first, second = adams(loss)
    for update, batch in zip(range(total_frames // 4), playing, strict=False):
        for name, optimizer in (("a", first), ("b", second))[: 1 if update % 3 else 2]:
            optimizer.zero_grad()
            loss(batch)[f"loss_{name}"].backward()
            optimizer.step()
    return loss


@pytest.mark.pins("OptimizerHook")
def test_several_optimizers_each_minimize_their_terms_at_their_interval():
    one, loss = hooked(40)
    one.train()
    assert same_tree(dict(loss.state_dict()), dict(by_hand(40).state_dict()))


def test_the_order_of_registration_is_that_of_the_steps():
    one, loss = hooked(40, order=("b", "a"))
    one.train()
    assert not same_tree(dict(loss.state_dict()), dict(by_hand(40).state_dict()))


@pytest.mark.pins("OptimizerHook", excludes="the prefix loss counts a total beside its parts twice")
def test_only_what_is_called_loss_something_is_minimized():
    one, loss = trainer(4, Total()), Total()
    one.train()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    loss({})["loss_a"].backward()
    optimizer.step()
    trained = one.learner.modules["default"].networks["loss_module"].model
    assert torch.equal(trained.weight, loss.weight)


class Total(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 1.0]))

    def forward(self, batch):
        loss = (self.weight * torch.tensor([1.0, -1.0])).square().sum()
        return {"loss": 1e3 * self.weight[1] + loss, "loss_a": loss}


@pytest.mark.pins("OptimizerHook", excludes="moments of optimizers in hooks are not saved")
def test_the_moments_of_every_optimizer_are_saved(tmp_path):
    through, expected = hooked(40)
    through.train()
    one, _ = hooked(20, save_trainer_file=tmp_path)
    one.train()
    other, loss = hooked(40)
    other.load_from_file(tmp_path)
    other.train()
    assert same_tree(dict(loss.state_dict()), dict(expected.state_dict()))
    assert set(other.state_dict()["learner"]["optimizer"]["default"]["optimizations"]) == {"a", "b"}


def test_a_hook_taken_out_moves_nothing_any_more():
    one, loss = hooked(8)
    (_, second) = one.operations("optimizer")
    one.unregister(second)
    before = loss.b.weight.detach().clone()
    one.train()
    assert torch.equal(loss.b.weight, before)
    assert [optimization.name for optimization in one.learner.optimizations()] == ["a"]


def test_a_ready_optimization_brings_its_own_terms_and_clip():
    loss = Two()
    one = Trainer(collector=collector(), loss_module=loss, total_frames=4)
    ready = Optimization(torch.optim.SGD(loss.a.parameters(), lr=0.1), name="mine", terms=["a"])
    OptimizerHook(optimization=ready).register(one)
    one.train()
    assert one.learner.optimizations() == [ready]


def test_a_loss_that_is_not_there_is_named():
    loss = Two()
    one = Trainer(collector=collector(), loss_module=loss, total_frames=4)
    OptimizerHook(optimization=torch.optim.SGD(loss.parameters(), lr=0.1), terms=["c"]).register(one)
    with pytest.raises(HooklineError, match="gives no loss_c; it gives loss_a, loss_b, loss"):
        one.train()


def test_parameters_have_one_owner():
    loss = Two()
    one = Trainer(collector=collector(), loss_module=loss, total_frames=4)
    OptimizerHook(optimization=torch.optim.SGD(loss.parameters(), lr=0.1)).register(one, "first")
    with pytest.raises(ValueError, match="default/first and default/second would both move the same Parameter"):
        OptimizerHook(optimization=torch.optim.SGD(loss.a.parameters(), lr=0.1)).register(one, "second")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either a learner or one optimization="),
        ({"learner": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1)}, "SGD is no learner"),
        ({"learner": trainer().learner, "terms": ["a"]}, "update_every of their own"),
        ({"optimization": object(), "every": {"env_steps": 2}}, "optimizers count updates"),
        ({"optimization": object(), "terms": "a"}, "terms is a list of losses"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        OptimizerHook(**given)


def test_an_interval_of_a_part_of_an_update_is_refused():
    adam, _ = adams(Two())
    with pytest.raises(ValueError, match=r"updates are whole: every=\{'updates': 1\.5\}"):
        OptimizerHook(optimization=adam, every={"updates": 1.5})
