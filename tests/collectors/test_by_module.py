"""Collectors of several modules in turn: batches by id, counted by module, and nothing lost where one of them fails."""

from itertools import islice

import pytest
import torch
from tensordict import TensorDict

from runner.collectors.by_module import CollectorByModule
from runner.spec import MASK, NEXT_DONE, CheckpointError, EnvFault, Progress


class Counting:
    """Gives batches that count up; fails at the number ``fails_at``."""

    resume_mode = "tape"

    def __init__(self, steps, fails_at=None):
        self.frames_per_batch, self.fails_at = steps, fails_at
        self.progress = Progress()
        self.number, self.closed, self.updates = 0, False, 0
        self.batch = self._batch(0)

    def _batch(self, number):
        return TensorDict({"observation": torch.full((1, self.frames_per_batch), number)}, [1, self.frames_per_batch])

    def __iter__(self):
        while True:
            if self.number == self.fails_at:
                raise EnvFault("env 0 broke")
            self.number += 1
            yield self._batch(self.number)

    def row_metrics(self):
        return {"perf/env_restarts": 1.0, "own": 2.0}

    def update_policy_weights_(self):
        self.updates += 1

    def shutdown(self):
        self.closed = True

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def of(**parts):
    return CollectorByModule(parts, Progress())


def shown(batch):
    return {module_id: int(part["observation"][0, 0]) for module_id, part in batch.items()}


def test_a_batch_has_one_of_every_part_which_counts_by_itself():
    collector = of(left=Counting(2), right=Counting(3))
    first, second = islice(collector, 2)
    assert (list(first.batch_size), list(first["right"].batch_size)) == ([], [1, 3])
    assert [shown(first), shown(second)] == [{"left": 1, "right": 1}, {"left": 2, "right": 2}]
    assert {module_id: part.progress.env_steps for module_id, part in collector.parts.items()} == {
        "left": 4,
        "right": 6,
    }
    assert (collector.frames_per_batch, collector.progress.env_steps) == (5, 0)


def test_the_run_counts_what_all_modules_have_played():
    progress = Progress(frame_skip=4)
    done = torch.tensor([[False, True, True]])
    right = TensorDict({NEXT_DONE: done, MASK: torch.tensor([[True, True, False]])}, [1, 3])
    progress.count(TensorDict({"left": TensorDict({NEXT_DONE: done[:, :2]}, [1, 2]), "right": right}, []))
    assert (progress.env_steps, progress.frames, progress.episodes, progress.batches) == (4, 16, 2, 1)


def test_the_seconds_of_every_part_are_those_of_the_run():
    collector = of(left=Counting(2), right=Counting(2))
    batches = iter(collector)
    for seconds in (0.5, 7.25):
        collector.progress.seconds = seconds
        next(batches)
        assert [part.progress.seconds for part in collector.parts.values()] == [seconds] * 2
    state = collector.state_dict()
    assert [part["progress"]["seconds"] for part in state["parts"].values()] == [0, 0]  # said once, by the run
    other = of(left=Counting(2), right=Counting(2))
    other.progress.seconds = 9.0
    other.load_state_dict(state)
    assert [(part.progress.seconds, part.progress.env_steps) for part in other.parts.values()] == [(9.0, 4)] * 2


def test_what_others_have_played_is_kept_where_one_fails():
    failing = of(left=Counting(2), right=Counting(2, fails_at=1))
    batches = iter(failing)
    next(batches)
    with pytest.raises(EnvFault, match="module right: env 0 broke"):
        next(batches)
    state = failing.state_dict()
    assert failing.parts["left"].progress.env_steps == 2
    mended = of(left=Counting(2), right=Counting(2))
    mended.load_state_dict(state)
    first, second = islice(mended, 2)
    assert [shown(first), shown(second)] == [{"left": 2, "right": 2}, {"left": 3, "right": 3}]
    assert mended.parts["left"].progress.env_steps == 6


def test_who_comes_plays_in_the_next_round_and_who_goes_is_closed():
    collector = of(left=Counting(2), right=Counting(2))
    batches = iter(collector)
    next(batches)
    right = collector.parts["right"]
    collector.add("third", Counting(2))
    collector.remove("right")
    assert shown(next(batches)) == {"left": 2, "third": 1}
    assert right.closed
    collector.update_policy_weights_()
    assert [part.updates for part in collector.parts.values()] == [1, 1]
    assert collector.row_metrics() == {"perf/env_restarts": 2.0, "left/own": 2.0, "third/own": 2.0}
    collector.shutdown()
    assert all(part.closed for part in collector.parts.values())


def test_the_state_of_other_modules_is_refused():
    state = of(left=Counting(2), right=Counting(2)).state_dict()
    with pytest.raises(CheckpointError, match="of modules left, right, and this run has left"):
        of(left=Counting(2)).load_state_dict(state)


def test_whoever_has_to_be_there_is_asked_for_before_the_state_is_loaded():
    members = {"left": [], "right": ["hook", 5]}
    parts = {"left": Counting(2), "right": Counting(2)}
    saved = CollectorByModule(parts, Progress(), members=lambda: members)
    asked = []

    def prepare(members):
        asked.append(members)
        one.add("right", Counting(2))

    one = CollectorByModule({"left": Counting(2)}, Progress(), prepare=prepare)
    one.load_state_dict(saved.state_dict())
    assert asked == [members]
    assert list(one.parts) == ["left", "right"]


def test_the_way_of_coming_back_is_told_by_module_where_it_differs():
    collector = of(left=Counting(2), right=Counting(2))
    assert collector.resume_mode == "tape"
    collector.parts["right"].resume_mode = "none"
    assert collector.resume_mode == "left=tape,right=none"
