"""Which optimizers a learner has, and what they are given."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn, optim

from runner.learner.approximation import Approximation
from runner.learner.learner import Learner
from runner.learner.module import Module, ModuleConfig, ModuleSpec
from runner.losses.dqn import DQNLoss
from tests.learner.parts import config, learner, parts, q_network, spec, transitions, update


def test_a_learner_that_is_not_built_says_so():
    one = Learner(spec())
    for call in (
        lambda: one.compute_losses(transitions()),
        lambda: one.update_from_batch(transitions()),
        lambda: one.update_from_episodes([transitions()]),
        lambda: one.update_from_iterator([transitions()], num_iters=1),
        lambda: one.add_module(module_id="a", module_spec=spec()),
        lambda: one.remove_module("default"),
        one.get_state,
        lambda: one.set_state({}),
        lambda: one.load_state_dict({}),
        lambda: one.module,
    ):
        with pytest.raises(ValueError, match=r"call build\(\) first"):
            call()


def test_building_a_second_time_changes_nothing():
    one = learner()
    modules, optimizer = one.module, one.get_optimizer()
    assert one.build() is one
    assert one.module == modules
    assert one.get_optimizer() is optimizer


def test_one_module_is_the_module_called_default():
    assert learner().module.keys() == Learner(spec()).build().module.keys() == {"default"}


def test_optimizers_are_found_by_their_short_and_by_their_full_name():
    one = learner("left", "right")
    assert one.get_optimizer("left") is one.get_optimizer("left", "left/default")
    assert one.get_optimizer("left") is not one.get_optimizer("right")
    assert one.get_optimizers_for_module("right") == [("default", one.get_optimizer("right"))]
    with pytest.raises(KeyError, match=r"no optimizer left/actor; there are left/default, right/default"):
        one.get_optimizer("left", "actor")


class Two(Learner):
    """Two optimizers of one network: one for each layer."""

    def configure_optimizers_for_module(self, module_id, config):
        first, second = self.modules[module_id].networks["q"].model.layers
        for name, layer, lr in (("body", first, [[0, 1.0], [100, 0.0]]), ("head", second, 0.5)):
            params = self.get_parameters(layer)
            optimizer = optim.SGD(params, lr=7.0)
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=lr
            )


def test_a_subclass_registers_several_optimizers_whose_rates_are_set_at_once():
    one = learner(kind=Two)
    assert [name for name, _ in one.get_optimizers_for_module()] == ["body", "head"]
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in one.get_optimizers_for_module()}
    assert rates == {"body": 1.0, "head": 0.5}
    one.progress.env_steps = 25
    metrics = one.update_from_batch(transitions())
    assert metrics["default"]["lr/body"] == 0.75
    assert metrics["default"]["lr/head"] == 0.5


def test_a_rate_that_was_given_as_a_number_stays():
    one = learner(options={"default": {"lr": 0.125}})
    for group in one.get_optimizer().param_groups:
        assert group["lr"] == 0.125
        group["lr"] = 3.0
    update(one, transitions())
    assert one.get_optimizer().param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([[0, 1.0]], "two or more"),
        ([[1, 1.0], [2, 0.5]], "begins at t = 0"),
        ([[0, 1.0], [2, 0.5, 3]], "pair"),
        ([[0, 1.0], [5, 0.5], [3, 0.1]], "must grow"),
        ("fast", "a number or"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_before_any_training(schedule, words):
    with pytest.raises(ValueError, match=words):
        learner(options={"default": {"lr": schedule}})


def test_torch_schedulers_are_made_for_each_optimizer_and_move_on_with_its_updates():
    class Scheduled(Two):
        def configure_optimizers_for_module(self, module_id, config):
            for name, layer in zip("ab", self.modules[module_id].networks["q"].model.layers, strict=True):
                params = self.get_parameters(layer)
                optimizer = optim.SGD(params, lr=1.0)
                half = partial(optim.lr_scheduler.ExponentialLR, gamma=0.5)
                self.register_optimizer(
                    module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=half
                )

    one = learner(kind=Scheduled)
    for _ in range(3):
        update(one, transitions())
    assert {one.get_optimizer(optimizer_name=name).param_groups[0]["lr"] for name in "ab"} == {0.125}


def test_what_is_no_optimizer_or_no_list_of_its_parameters_is_refused():
    one, layer = learner(), nn.Linear(1, 1)
    optimizer, params = optim.SGD(layer.parameters(), lr=1.0), list(layer.parameters())
    for given, words in (
        ({"optimizer": "adam", "params": params}, "a str is no torch optimizer"),
        ({"optimizer": optimizer, "params": tuple(params)}, "list of tensors; got a tuple"),
        ({"optimizer": optimizer, "params": [*params, 3]}, "there is a int in it"),
        ({"optimizer": optimizer, "params": params[:1]}, "those that the optimizer was made with"),
        ({"optimizer": optimizer, "params": params}, "needs a name of its own"),
        ({"optimizer": optimizer, "params": params, "module_id": "other"}, "no module 'other'; there are default"),
    ):
        with pytest.raises(ValueError, match=words):
            one.register_optimizer(**given)
    assert len(one.optimizations()) == 1


def test_names_that_would_run_together_with_an_underscore_stay_apart():
    layers = {}

    class Both(Learner):
        def configure_optimizers_for_module(self, module_id, config):
            (params,) = (self.get_parameters(self.modules[module_id]),)
            name = {"a_b": "c", "a": "b_c"}[module_id]
            layers[module_id] = optim.SGD(params, lr=1.0)
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=layers[module_id], params=params
            )

    one = learner("a_b", "a", kind=Both)
    assert one.get_optimizer("a_b", "c") is layers["a_b"]
    assert one.get_optimizer("a", "b_c") is layers["a"]


def test_gradients_are_sorted_out_by_their_optimizer():
    one = learner(kind=Two)
    every = {
        one.get_param_ref(parameter): index for index, parameter in enumerate(one.get_parameters(one.module["default"]))
    }
    assert len(every) == 4
    head = one.get_optimizer(optimizer_name="head")
    chosen = one.filter_param_dict_for_optimizer({**every, next(iter(every)): None}, head)
    assert list(chosen.values()) == [2, 3]


class Scripted:
    """Acts by a rule; there is nothing to train."""

    def __call__(self, observation):
        return observation[..., :2]

    def parameters(self):
        return iter(())

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_module_that_cannot_be_trained_gets_no_optimizer_and_stays():
    scripted = ModuleSpec(lambda: {"q": Approximation(Scripted())}, DQNLoss(0.9, True, "l2"), config())
    one = Learner({"learns": spec(), "scripted": scripted}).build()
    assert one.get_optimizers_for_module("scripted") == []
    metrics = one.update_from_batch({"learns": transitions(), "scripted": transitions()})
    assert "loss/q" in metrics["learns"]
    assert "loss/q" not in metrics["scripted"]


def test_a_learner_may_ask_for_more_of_its_networks():
    class Picky(Learner):
        @classmethod
        def rl_module_required_apis(cls):
            return [*super().rl_module_required_apis(), nn.Sequential]

    assert learner(kind=Picky).get_optimizers_for_module() == []


def test_a_ready_module_keeps_the_optimizations_it_has():
    q = q_network(0)
    made = learner().module["default"].optimizations
    one = Learner({"default": Module(q, DQNLoss(0.9, True, "l2"), made)}).build()
    assert one.module["default"].optimizations == made


def test_a_function_is_applied_to_the_learner():
    assert learner().apply(lambda one, n, k=0: (len(one.module), n, k), 2, k=3) == (1, 2, 3)
    assert learner().device == torch.device("cpu")
    assert not learner().distributed


def test_how_many_numbers_are_trained_is_told():
    one = learner("left", "right")
    each = 3 * 8 + 8 + 8 * 2 + 2
    metrics = one.update_from_batch(parts("left", "right"))
    assert metrics["left"]["num_trainable_parameters"] == each
    assert metrics["__all_modules__"]["num_trainable_parameters"] == 2 * each
    assert metrics["__all_modules__"]["num_non_trainable_parameters"] == 0


def test_an_override_that_is_none_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="has no clipp; did you mean clip"):
        ModuleConfig(partial(optim.SGD, lr=1.0)).override({"clipp": 1})


class Curious(nn.Module):
    """Brings its own loss: how badly it foretells what a random network makes of an observation (Burda et al. 2018)."""

    def __init__(self):
        super().__init__()
        self.random = nn.Linear(3, 4).requires_grad_(False)
        self.predictor = nn.Linear(3, 4)

    def novelty(self, observation):
        return (self.predictor(observation) - self.random(observation)).square().mean(-1)

    def compute_self_supervised_loss(self, batch):
        novelty = self.novelty(batch["observation"])
        return {"loss_novelty": novelty.mean(), "novelty": novelty.detach()}


def test_a_module_may_learn_without_any_reward_beside_a_policy():
    torch.manual_seed(0)
    curious = ModuleSpec(lambda: {"curious": Approximation(Curious())}, None, config())
    alone = learner()
    one = Learner({"policy": spec(0), "curiosity": curious}).build()
    random = one.module["curiosity"].networks["curious"].model.random.weight.clone()
    batch, first, last = transitions(size=64), None, None
    for _ in range(200):
        parts = TensorDict({"policy": batch.copy(), "curiosity": batch.copy()}, [])
        metrics = update(one, parts)
        expected = update(alone, batch.copy())
        assert metrics["policy/loss/q"] == expected["loss/q"]
        last = metrics["curiosity/loss/novelty"].item()
        first = first or last
    assert last < 0.05 * first
    assert torch.equal(one.module["curiosity"].networks["curious"].model.random.weight, random)
    seen, unseen = (one.module["curiosity"].networks["curious"].model.novelty(some) for some in (
        batch["observation"], batch["observation"] + 5
    ))  # fmt: skip
    assert parts["curiosity", "novelty"].shape == (64,)
    assert unseen.mean() > 10 * seen.mean()


def test_a_module_without_any_loss_is_refused():
    with pytest.raises(ValueError, match="module 'default' has no loss, and none of its networks brings one"):
        Learner(ModuleSpec(lambda: q_network(0), None, config())).build()
