"""Every choice of every group on disk composes and is valid; a new one is tested by being there."""

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import CONF, check
from runner.config.composer import Composer
from runner.config.help import help_text

CHOICES = [
    (file.relative_to(CONF).parts[0], "/".join(file.relative_to(CONF).with_suffix("").parts[1:]))
    for file in sorted(CONF.glob("*/**/*.yaml"))
]
OFFLINE = ["source=offline", "source.path=.", "evaluation.every.updates=9", "checkpoint.every.updates=9", "tuned=null"]
NEEDED = {
    ("collector", "offline"): ["stop_after.updates=9", *OFFLINE],
    ("source", "offline"): ["collector=offline", "stop_after.updates=9", *OFFLINE],
    ("algo", "cql"): ["source.path=."],
    ("algo", "bc"): ["source.path=."],
    ("loss", "bc"): ["algo=bc", "source.path=."],
    ("network", "shared_features"): ["algo=a2c"],
    ("env", "gym"): ["env.id=Pendulum-v1"],
    ("scheduler", "piecewise"): ["scheduler.points=[[0,1e-3],[9,1e-4]]"],
    ("collector", "sync"): ["env.num_envs=2"],
    ("collector", "async"): ["env.num_envs=2"],
    ("learning", "value_estimator"): ["learning.value_estimator.estimator={_target_: tests.toys.RewardToGo}"],
}


def needed(group, choice):
    """What else has to be chosen: tuned values go with their algorithm and environment."""
    if group == "tuned":
        algo, env = choice.split("/")
        return [f"algo={algo}", f"env={env}", *NEEDED.get(("algo", algo), [])]
    return NEEDED.get((group, choice), [])


def test_there_are_choices():
    assert len(CHOICES) > 20


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda part: part)
def test_a_choice_composes_and_is_valid(group, choice):
    found = check(parse_arguments([f"{group}={choice}", *needed(group, choice)]))
    assert choice in (found.choices[group], *found.choices[group]) or found.choices[group] == choice


def test_help_names_every_group_and_every_choice():
    page = help_text(Composer(CONF)).splitlines()
    lines, name = {}, ""
    for line in page:
        if line.startswith("  ") and line.split():
            name = name if line.startswith(" " * 18) else line.split()[0]  # or it goes on with the choices of the last
            lines[name] = lines.get(name, "") + line
    for group, choice in CHOICES:
        assert choice in lines[group]
    assert len(page) < 100
    assert max(map(len, page)) <= 120


def test_help_shows_the_default_of_a_key_and_marks_the_default_choice():
    page = help_text(Composer(CONF))
    assert "seed=0 " in page
    assert "*cartpole" in page
    assert "*csv  *mlflow" in page
    assert "*acrobot" not in page
