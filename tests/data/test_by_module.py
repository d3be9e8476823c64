"""Sources of several modules: each is fed and drawn from by itself, and waits for its own warm-up alone."""

import pytest
import torch
from tensordict import TensorDict

from runner.data.by_module import SourceByModule
from runner.spec import CheckpointError


class Echo:
    """Gives back what it took, and remembers what it was told."""

    def __init__(self, warmup=0, steps=2):
        self.warmup, self.steps, self.taken, self.told = warmup, steps, [], []

    def optim_steps(self):
        return self.steps

    def extend(self, batch):
        self.taken.append(float(batch["x"].sum()))

    def sample(self, batch):
        return batch * 10

    def update_priority(self, sub_batch):
        self.told.append(float(sub_batch["x"].sum()))

    def state_dict(self):
        return {"taken": list(self.taken)}

    def load_state_dict(self, state):
        self.taken = list(state["taken"])


def batch(**values):
    return TensorDict({name: TensorDict({"x": torch.tensor([value])}, [1]) for name, value in values.items()}, [])


def test_every_part_takes_gives_and_is_told_its_own():
    source = SourceByModule({"left": Echo(), "right": Echo()}, lambda module_id: 0)
    source.extend(batch(left=1.0, right=2.0))
    drawn = source.sample(batch(right=2.0))
    assert {name: float(part["x"]) for name, part in drawn.items()} == {"right": 20.0}
    source.update_priority(drawn)
    assert [part.taken for part in source.parts.values()] == [[1.0], [2.0]]
    assert [part.told for part in source.parts.values()] == [[], [20.0]]


def test_there_are_updates_as_soon_as_one_module_is_warm():
    played = {"left": 0, "right": 0}
    source = SourceByModule({"left": Echo(100), "right": Echo(50)}, played.__getitem__)
    assert (source.warm(), source.optim_steps()) == ([], 0)
    played |= {"left": 50, "right": 50}
    assert (source.warm(), source.optim_steps()) == (["right"], 2)
    played["left"] = 100
    assert source.warm() == ["left", "right"]


def test_parts_that_would_not_be_updated_together_are_refused():
    with pytest.raises(ValueError, match="2 updates for each batch of left are not 3"):
        SourceByModule({"left": Echo(), "right": Echo(steps=3)}, lambda module_id: 0)


def test_the_state_is_by_module_and_that_of_others_is_refused():
    source = SourceByModule({"left": Echo(), "right": Echo()}, lambda module_id: 0)
    source.extend(batch(left=1.0, right=2.0))
    other = SourceByModule({"left": Echo(), "right": Echo()}, lambda module_id: 0)
    other.load_state_dict(source.state_dict())
    assert other.state_dict() == source.state_dict()
    other.remove("right")
    with pytest.raises(CheckpointError, match="of modules left, right; there are left"):
        other.load_state_dict(source.state_dict())
