"""Sources of several modules: as many updates for all, as soon as one of them is warm."""

import pytest

from runner.data.by_module import SourceByModule
from runner.spec import CheckpointError


class Source:
    """Remembers what it took."""

    def __init__(self, *taken, steps=2):
        self.taken, self.steps = list(taken), steps

    def optim_steps(self):
        return self.steps

    def state_dict(self):
        return {"taken": list(self.taken)}

    def load_state_dict(self, state):
        self.taken = list(state["taken"])


def sources(is_warm=lambda module_id: True, **parts):
    return SourceByModule(parts, is_warm)


def test_there_are_updates_as_soon_as_one_module_is_warm():
    warm = set()
    source = sources(warm.__contains__, left=Source(), right=Source())
    assert source.optim_steps() == 0
    warm.add("right")
    assert source.optim_steps() == 2


def test_parts_that_would_not_be_updated_together_are_refused():
    with pytest.raises(ValueError, match="2 updates for each batch of left are not 3"):
        sources(left=Source(), right=Source(steps=3))


def test_the_state_is_by_module_and_that_of_others_is_refused():
    source, other = sources(left=Source(1.0), right=Source(2.0)), sources(left=Source(), right=Source())
    other.load_state_dict(source.state_dict())
    assert [part.taken for part in other.parts.values()] == [[1.0], [2.0]]
    other.remove("right")
    with pytest.raises(CheckpointError, match="of modules left, right; there are left"):
        other.load_state_dict(source.state_dict())
