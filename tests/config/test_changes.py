"""How long a module that comes in mid-run is going to play."""

from types import SimpleNamespace

import pytest

from runner.config.changes import Change, Offer, due, own_env_steps
from runner.spec import Progress

ALIKE = {"left": 8, "right": 8, "new": 8}
TWICE = {"left": 8, "new": 16}


def adds(number, module_id="other", frames=8, unit="env_steps"):
    offer = Offer(module_id, {"collector": {"frames_per_batch": frames}}, None, {})
    return Change("add_module", unit, number, module_id, offer)


def removes(number, module_id="right", unit="env_steps", is_done=False):
    return Change("remove_module", unit, number, module_id, maker=SimpleNamespace(is_done=is_done))


@pytest.mark.parametrize(
    ("frames", "changes", "expected"),
    [
        (ALIKE, [], 4000),  # a third of the 12,000 that are left
        (TWICE, [], 8000),  # two thirds
        (ALIKE, [removes(18_000)], 6000 // 3 + 6000 // 2),
        (ALIKE, [removes(13_000), adds(18_000)], 1000 / 3 + 5000 / 2 + 6000 / 3),
        (ALIKE, [removes(18_000, "new")], 2000),  # itself
        (ALIKE, [removes(36_000, unit="frames")], 5000),  # of two frames each
        (ALIKE, [removes(30_000)], 4000),  # after the end
        (ALIKE, [removes(12_000)], 6000),  # in this very batch, after it came
        (ALIKE, [removes(4_000, "new", is_done=True), removes(12_000, "gone")], 4000),  # long ago, and just before
        (ALIKE, [adds(12_000)], 3000),  # in this very batch, by a hook that comes later
        (ALIKE, [removes(500, unit="updates")], 4000),  # whenever that is
    ],
)
def test_a_module_plays_its_share_of_what_is_left_with_those_who_are_there_then(frames, changes, expected):
    assert own_env_steps("new", frames, changes, 2, 12_000, 24_000) == int(expected)


def test_there_is_one_step_at_least():
    assert own_env_steps("new", ALIKE, [], 1, 24_000, 24_000) == 1


def test_what_comes_in_one_batch_is_done_by_time_and_once():
    later, sooner, done, not_yet = adds(605, "right"), removes(601), removes(500, is_done=True), adds(900)
    progress = Progress(env_steps=608)
    assert due([later, sooner, done, not_yet], progress) == [sooner, later]
    assert due([removes(3, unit="episodes"), adds(600)], Progress(env_steps=608, episodes=4)) == [
        removes(3, unit="episodes"),
        adds(600),
    ]  # nobody knows which was first
