"""What is typed below ``learner.optimizations`` is checked name by name."""

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.report import Rejected

ACTOR = "learner.optimizations.actor"


def answer(override):
    with pytest.raises(Rejected) as rejected:
        check(parse_arguments(["algo=sac", "env=pendulum", override]))
    (problem,) = rejected.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "learner.optimizations.actr.lr=1",
            f"learner.optimizations.actr.lr (command line): there is no such key; did you mean {ACTOR}.lr?",
        ),
        (f"{ACTOR}.evry=2", f"{ACTOR}.evry (command line): there is no such key; did you mean {ACTOR}.every?"),
        (f"+{ACTOR}.evry=2", f"{ACTOR}.evry (command line): there is no such key; did you mean {ACTOR}.every?"),
        (f"+{ACTOR}.x=2", f"{ACTOR}.x (command line): there is no such key; {ACTOR} takes every, lr, clip"),
        (f"{ACTOR}.lr=-1", f"{ACTOR}.lr = -1 (command line): expected a number > 0 or null"),
        (f"{ACTOR}=3", f"{ACTOR} = 3 (command line): expected a mapping of every, lr and clip to numbers > 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_by_one_line_about_its_own_key(override, expected):
    assert answer(override).startswith(expected)


def test_what_is_right_reaches_the_learner():
    config = check(parse_arguments(["algo=sac", "env=pendulum", f"{ACTOR}.lr=1e-4", f"{ACTOR}.every=2"])).config
    assert config["learner"]["optimizations"]["actor"] == {"every": 2, "lr": 1e-4, "clip": None}
