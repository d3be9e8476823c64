"""In which order a learner is built, and what one update call does one after the other."""

import inspect

import pytest
import torch
from torch import nn, optim

from runner.learner.connectors import EpisodesToBatch
from runner.learner.learner import Learner
from runner.learner.metrics import LearnerMetrics
from runner.learner.module import Module, ModuleSpec
from runner.losses.dqn import DQNLoss
from tests.learner.parts import bits, config, learner, parts, q_network, same, spec, transitions


class Telling(LearnerMetrics):
    """Says what is logged, once each."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def log_value(self, key, value, *arguments, **options):
        for name in ("num_trainable_parameters", "num_module_steps_trained", "total_loss", "weights_seq_no"):
            if key == ("default", name):
                self.calls.append(name)
        super().log_value(key, value, *arguments, **options)

    def reduce(self):
        self.calls.append("reduce")
        return super().reduce()


class Recording(Learner):
    """Writes down every step that a subclass may take in another way."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls = []
        self.metrics = Telling(self.calls)

    def note(self, name):
        self.calls.append(name)

    def configure_optimizers(self):
        self.note("configure_optimizers")
        super().configure_optimizers()

    def configure_optimizers_for_module(self, module_id, config):
        self.note("configure_optimizers_for_module")
        super().configure_optimizers_for_module(module_id, config)

    def before_gradient_based_update(self, timesteps):
        self.note(("before", self.weights_seq_no, dict(timesteps)))

    def should_module_be_updated(self, module_id, batch=None):
        if "select" not in self.calls:
            self.note("select")
        return super().should_module_be_updated(module_id, batch)

    def compute_losses(self, batch):
        self.note("compute_losses")
        return super().compute_losses(batch)

    def compute_loss_for_module(self, module_id, terms, batch):
        self.note("compute_loss_for_module")
        return super().compute_loss_for_module(module_id, terms, batch)

    def compute_gradients(self, optimization, losses):
        self.note("compute_gradients")
        return super().compute_gradients(optimization, losses)

    def postprocess_gradients(self, optimization, gradients):
        self.note("postprocess_gradients")
        return super().postprocess_gradients(optimization, gradients)

    def postprocess_gradients_for_module(self, module_id, optimization, gradients):
        self.note("postprocess_gradients_for_module")
        return super().postprocess_gradients_for_module(module_id, optimization, gradients)

    def apply_gradients(self, optimization, gradients):
        self.note("apply_gradients")
        super().apply_gradients(optimization, gradients)

    def after_gradient_based_update(self, timesteps):
        self.note(("after", self.weights_seq_no, dict(timesteps)))


MINIBATCH = [
    "compute_losses", "compute_loss_for_module", "compute_gradients", "postprocess_gradients",
    "postprocess_gradients_for_module", "apply_gradients", "total_loss",
]  # fmt: skip


def times(env_steps, updates):
    return {"env_steps": env_steps, "frames": 0, "updates": updates}


def test_an_update_call_goes_through_all_of_its_steps_in_one_order():
    def told(episodes, batch):
        one.note("connector")
        return batch

    one = learner(kind=Recording, connectors=EpisodesToBatch(more=[told]))
    one.calls.clear()
    one.update_from_episodes([transitions(0, 4), transitions(1, 2)], timesteps={"env_steps": 9}, minibatch_size=3)
    assert one.calls == [
        "connector", ("before", 0, times(9, 0)), "select", "num_module_steps_trained", *MINIBATCH, *MINIBATCH,
        ("after", 1, times(9, 2)), "num_trainable_parameters", "weights_seq_no", "reduce",
    ]  # fmt: skip


def test_an_update_call_without_a_module_to_update_leaves_out_what_is_of_modules():
    one = learner(kind=Recording, modules_to_train=[])
    one.calls.clear()
    one.update_from_batch(transitions(), timesteps={"env_steps": 9})
    assert one.calls == [("before", 0, times(9, 0)), "select", ("after", 1, times(9, 0)), "reduce"]


def test_a_batch_of_unknown_modules_moves_nothing():
    one = learner("left", "right", kind=Recording)
    before = bits(one, "left")
    one.calls.clear()
    with pytest.raises(ValueError, match="parts for middle, strange, which are no modules"):
        one.update_from_batch(parts("left", "middle", "strange"))
    assert "compute_losses" not in one.calls
    assert same(bits(one, "left"), before)
    assert one.weights_seq_no == 0


def test_nothing_is_made_and_no_random_number_drawn_before_build():
    made = []

    def networks():
        made.append("networks")
        return q_network(0)

    random = torch.get_rng_state()
    one = Recording(ModuleSpec(networks, DQNLoss(0.9, True, "l2"), config()))
    assert made == one.calls == []
    assert not one.is_built
    assert one.build() is one
    assert one.build() is one
    assert made == ["networks"]
    assert one.is_built
    assert one.calls == ["configure_optimizers", "configure_optimizers_for_module"]
    assert torch.equal(torch.get_rng_state(), random)


def test_one_module_or_many_are_given_ready_or_as_their_specs():
    ready = Module(q_network(0), DQNLoss(0.9, True, "l2"))
    for given in (spec(), ready, {"default": spec()}, {"default": ready}):
        one = Learner(given).build()
        assert one.module.keys() == {"default"}
        assert not one.is_keyed
    both = Learner({"left": ready, "right": spec(1)}).build()
    assert both.module["left"].networks["q"] is ready.networks["q"]
    assert both.is_keyed


def test_what_needs_modules_is_refused_before_they_are_built():
    one, layer = Learner(spec()), nn.Linear(1, 1)
    optimizer, params = optim.SGD(layer.parameters(), lr=1.0), list(layer.parameters())
    for call in (
        one.state_dict,
        lambda: one.set_weights({"rl_module": {}}),
        lambda: one.register_optimizer(optimizer=optimizer, params=params),
        lambda: one.compute_losses(transitions()),
    ):
        with pytest.raises(ValueError, match=r"call build\(\) first|there is no module 'default'"):
            call()
    with pytest.raises(KeyError, match="there are none"):
        one.get_optimizer()
    assert one.apply(lambda one: one.is_built) is False
    assert one.optimizations() == []
    assert one.get_optimizers_for_module() == []
    assert one.device == torch.device("cpu")


def test_the_ways_to_update_have_the_options_and_defaults_that_are_told():
    def options(method):
        given = inspect.signature(method).parameters.values()
        return {one.name: one.default for one in given if one.default is not inspect.Parameter.empty}

    expected = {"timesteps": None, "num_epochs": 1, "minibatch_size": None, "shuffle_batch_per_epoch": False}
    assert options(Learner.update_from_batch).items() >= expected.items()
    assert options(Learner.update_from_iterator) == {"timesteps": None, "minibatch_size": None, "num_iters": None}


def test_episodes_are_learnt_from_with_all_the_options_of_a_batch():
    one, other = (learner(shuffling=torch.Generator().manual_seed(2)) for _ in range(2))
    more = {"num_epochs": 2, "minibatch_size": 4, "shuffle_batch_per_epoch": True, "num_total_minibatches": 2}
    one.update_from_episodes([transitions(0, 4), transitions(1, 3)], timesteps={"env_steps": 3}, **more)
    other.update_from_batch(torch.cat([transitions(0, 4), transitions(1, 3)]), timesteps={"env_steps": 3}, **more)
    assert one.progress.updates == other.progress.updates == 2
    assert one.progress.env_steps == 3
    assert same(bits(one), bits(other))


def test_other_processes_are_those_that_torch_knows_of(monkeypatch):
    one = learner()
    for initialized, processes, expected in ((False, 1, False), (True, 1, False), (True, 2, True)):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda value=initialized: value)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda value=processes: value)
        assert one.distributed is expected
