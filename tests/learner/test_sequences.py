"""Random sequences of what may be done to a Learner: each module has to stay what it would have been alone."""

import random
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from runner.learner.learner import Learner
from runner.losses.dqn import DQNLoss
from runner.spec import Progress
from tests.learner.parts import bits, same, spec, transitions

IDS = ("a", "b", "c", "d")
KINDS = (
    {},
    {"clip": 0.1},
    {"update_every": 2},
    {"lr": [[0, 0.1], [60, 0.001]]},
    {"scheduler": partial(StepLR, step_size=2, gamma=0.5)},
    {"non_finite": "skip", "non_finite_limit": None},
)
"""How modules may be configured."""
LOSS = DQNLoss(0.9, True, "l2")  # whose gradients are infinite where a reward is


class World:
    """A learner with modules that come and go, and beside it a learner for each of them alone."""

    def __init__(self, seed, compile):
        self.random, self.compile = random.Random(seed), compile
        self.specs, self.alone, self.removed = {}, {}, {}
        self.progress = Progress()
        self.number = 1000 * seed
        for module_id in IDS[:2]:
            self._begin(module_id)
        self.learner = self._make()

    def _begin(self, module_id):
        self.number += 1
        self.specs[module_id] = spec(self.number, LOSS, **self.random.choice(KINDS))
        self.alone[module_id] = Learner({module_id: self.specs[module_id]}, Progress(), self.compile).build()

    def _make(self):
        made = Learner(dict(self.specs), self.progress, self.compile).build()
        made.is_keyed = True  # a lone module that others have left is still called by its id
        return made

    def update(self):
        present = [one for one in self.learner.modules if self.random.random() < 0.8]
        self.number += 1
        batches = {one: self._batch(one) for one in present}
        timesteps = {"env_steps": self.progress.env_steps + 4}
        for module_id, batch in batches.items():
            if self.learner.should_module_be_updated(module_id):
                self._follow(module_id, batch, timesteps)
        self.learner.update_from_batch(batches, timesteps=timesteps)

    def _follow(self, module_id, batch, timesteps):
        one = self.alone[module_id]
        one.progress.updates = self.progress.updates
        one.update_from_batch(batch, timesteps=timesteps)

    def _batch(self, module_id):
        self.number += 1
        batch = transitions(self.number, self.random.randint(3, 6))
        if self.specs[module_id].config.non_finite == "skip" and self.random.random() < 0.3:
            batch["next", "reward"][0] = float("inf")
        return batch

    def add(self):
        if free := [one for one in IDS if one not in self.learner.modules]:
            module_id = self.random.choice(free)
            self._begin(module_id)
            self.learner.add_module(module_id=module_id, module_spec=self.specs[module_id])

    def remove(self):
        if len(self.learner.modules) > 1:
            module_id = self.random.choice(list(self.learner.modules))
            self.learner.remove_module(module_id)
            del self.specs[module_id], self.alone[module_id]

    def choose(self):
        some = [one for one in self.learner.modules if self.random.random() < 0.7]
        self.learner.modules_to_train = self.random.choice([None, some])

    def save_and_restore(self):
        state, selected = self.learner.get_state(), self.learner.modules_to_train
        self.learner = self._make()
        self.learner.set_state(state)
        assert self.learner.modules_to_train == selected

    def restore_one(self):
        """Take one module back to where it was, and its like alone as well."""
        module_id = self.random.choice(list(self.learner.modules))
        names = [f"rl_module/{module_id}", f"optimizer/{module_id}"]
        state, own = self.learner.get_state(names), self.alone[module_id].get_state(names)
        self.update()
        self.learner.set_state({**state, "weights_seq_no": self.learner.weights_seq_no})
        self.alone[module_id].set_state(own)

    def check(self):
        assert list(self.learner.modules) == list(self.alone)
        for module_id, one in self.alone.items():
            assert same(bits(self.learner, module_id), bits(one, module_id)), module_id


def play(seed, compile, length):
    world = World(seed, compile)
    weighted = {world.update: 6, world.add: 1, world.remove: 1, world.choose: 1, world.save_and_restore: 1,
                world.restore_one: 1}  # fmt: skip
    steps = world.random.choices(list(weighted), list(weighted.values()), k=length)
    for step in steps:
        step()
        world.check()
    return world


@pytest.mark.parametrize(("seed", "compile"), [(0, "none"), (1, "none"), (2, "none"), (0, "trace")])
def test_whatever_is_done_to_a_learner_each_module_stays_what_it_would_be_alone(seed, compile):
    play(seed, compile, 60)


def test_updates_are_skipped_on_the_way():
    worlds = [play(seed, "none", 60) for seed in range(4)]
    assert any(one.skipped for world in worlds for one in world.learner.optimizations())


@pytest.mark.slow
@pytest.mark.parametrize(("compile", "number"), [("none", 100), ("trace", 6)])
def test_long_sequences_leave_each_module_what_it_would_be_alone(compile, number):
    for seed in range(100, 100 + number):
        play(seed, compile, 120)


def test_a_module_that_was_touched_is_noticed():
    world = play(0, "none", 10)
    (network,) = next(iter(world.learner.modules.values())).networks.values()
    with torch.no_grad():
        next(network.model.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(AssertionError):
        world.check()
