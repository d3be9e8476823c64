"""What comments in conf/ tell people to type works."""

import re

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import CONF, check
from tests.config.test_groups import needed
from tests.whole.runs import compose, compose_on_policy, train

GROUPS = {folder.name for folder in CONF.iterdir() if folder.is_dir()}
CHOICE = re.compile(r"(?<![\w.=])([a-z_]+)=(\[[a-z_,]+\]|[a-z_0-9]+)(?![\w=<])")


def commands():
    """The choices of each comment, those of one line together."""
    for file in sorted(CONF.rglob("*.yaml")):
        for line in file.read_text().splitlines():
            _, _, comment = line.partition("#")
            words = tuple(f"{group}={choice}" for group, choice in CHOICE.findall(comment) if group in GROUPS)
            if words:
                yield file.relative_to(CONF), words


COMMANDS = sorted({words for _, words in commands()})
LEARNING = sorted({word for words in COMMANDS for word in words if word.startswith("learning=[")})


def test_comments_have_commands():
    assert len(COMMANDS) > 10
    assert "learning=[gae,on_policy,kl_stop]" in LEARNING


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_choices_in_comments_compose(words):
    pairs = (word.split("=") for word in words)
    more = [word for group, choice in pairs for word in needed(group, choice)]
    check(parse_arguments([*words, *more]))


def of(hooks):
    """What else a command with these hooks is for."""
    if "model_rollouts" in hooks:
        return ["algo=dyna", "env=pendulum"]
    if "on_policy" not in hooks:
        return ["algo=dqn", "source.warmup=50"]
    return ["algo=ppo", "loss.kind=kl_penalty"] if "adaptive_kl" in hooks else ["algo=ppo"]


@pytest.mark.parametrize("command", LEARNING)
def test_learning_hooks_in_comments_make_a_run_that_learns(command):
    algo, *more = of(command.removeprefix("learning=[").rstrip("]").split(","))
    short = [*more, "tuned=null", "logger=[]", "evaluation.final_episodes=1"]
    choose = compose_on_policy if algo == "algo=ppo" else compose
    found = train(choose(algo, command, *short, "total_frames=256"))
    assert found.trainer.progress.env_steps >= 256
