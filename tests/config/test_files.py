"""Files of the user's are looked at before Hydra reads them: what is wrong is said with its file and line."""

import os
import sys

import pytest

FAULTS = {
    "a tab": ("id: x\n\tnum_envs: 1\n", 2, "has a tab: YAML is indented with spaces"),
    "an open bracket": ("id: [1\n", 2, "is no valid YAML: expected ',' or ']'"),
    "an alias of nothing": ("id: *x\n", 1, "found undefined alias 'x'"),
    "a key that is there twice": ("id: x\nnum_envs: 1\nid: y\n", 3, "id is here twice, and first in line 1"),
    "a list for a key": ("? [1, 2]\n: 3\n", 1, "a key must be a name"),
    "a list": ("- x\n", 1, "expected settings, each as name: value, not a list"),
    "a word": ("x\n", 1, "expected settings, each as name: value, not the value x"),
    "a tag that runs code": ("id: !!python/object/apply:os.getcwd []\n", 1, "only plain values are read"),
    "another encoding": (b"id: \xff\n", 1, "is not UTF-8: byte 0xff"),
    "a control character": ("num_envs: 1\nid: '\x01'\n", 2, "has the character '\\x01'"),
    "too many brackets": ("id: " + "[" * 600, 1, "is nested too deep"),
    "defaults that are no list": ("defaults: gym\n", 1, "expected a list; write it as defaults: ["),
    "defaults with a number": ("defaults: [gym, 3]\n", 1, "expected the name of a choice, or one group: choice"),
    "defaults with an unknown choice": ("defaults:\n  - gim\n", 2, "env has no choice gim; did you mean gym?"),
    "defaults with an unknown group": ("defaults: [/los: dqn]\n", 1, "there is no group los; did you mean /loss?"),
    "a choice in another group": ("defaults: [/loss: dqm]\n", 1, "loss has no choice dqm; did you mean dqn?"),
    "an override of an unknown group": ("defaults: [override /los: dqn]\n", 1, "there is no group los"),
    "an unknown word before a group": (
        "defaults: [overide /loss: dqn]\n",
        1,
        "overide is neither optional nor override",
    ),
    "a choice left open": ("defaults: [/loss: '???']\n", 1, "loss has no choice ???"),
    "a default that is there twice": ("defaults: [gym, gym]\n", 1, "gym is in the list twice"),
}


@pytest.fixture(autouse=True)
def as_deep_as_python_goes():
    """Torch's compiler, which earlier tests may have used, lets calls go deeper than they do when files are read."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture
def write(ask):
    """``write(text, name)`` makes a file of the user's in ``mine/``."""

    def file(text, name="env/own.yaml"):
        path = ask.folder / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return file


@pytest.mark.parametrize(("text", "line", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line_with_its_file_and_line(ask, write, text, line, words):
    write(text)
    answer = ask("--config-dir", "mine", "env=own")
    assert (answer.code, answer.out, len(answer.mistakes)) == (2, "", 1)
    assert f"(mine/env/own.yaml:{line}): " in answer.mistakes[0]
    assert words in answer.mistakes[0]
    assert os.listdir(ask.folder) == ["mine"]


def test_defaults_that_lead_back_to_themselves_are_shown_as_they_go_round(ask, write):
    write("defaults: [other]\n")
    write("defaults: [own]\n", "env/other.yaml")
    (line,) = ask("--config-dir", "mine", "env=own").mistakes
    assert "the lists lead back to where they began: " in line
    assert "mine/env/own.yaml -> mine/env/other.yaml" in line or "mine/env/other.yaml -> mine/env/own.yaml" in line


def test_a_value_that_holds_itself_is_said_to(ask, write):
    write("defaults: [gym]\nextra: &a [*a]\n")
    (line,) = ask("--config-dir", "mine", "env=own").mistakes
    assert line == "YAML (mine/env/own.yaml): a value leads back to itself, or is nested too deeply"


def test_an_interpolation_in_a_defaults_list_is_blamed_on_its_file(ask, write):
    write("defaults: [/loss: '${nothing}']\n")
    (line,) = ask("--config-dir", "mine", "env=own").mistakes
    assert line.startswith("defaults (mine/env/own.yaml): ")


def test_an_empty_choice_is_blamed_on_its_file_and_not_on_what_needs_it(ask, write):
    write("# nothing yet\n", "loss/own.yaml")
    (line,) = ask("--config-dir", "mine", "loss=own").mistakes
    assert line.startswith("loss (mine/loss/own.yaml:1): expected a node with a _target_")


SWEEP = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      {}\n"


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ("sede: 1,2", "sede"),
        ("seed: 1,-2", "seed = -2"),
        ("env: cartpole,cartpol", "env=cartpol"),
        ("seed: '[1'", "seed=[1"),
        ("loss.gamma: 0.1,0.2", "loss.gamma=0.1,0.2"),
    ],
)
def test_a_sweep_in_a_file_is_checked_like_one_that_is_typed(ask, write, params, where):
    write(SWEEP.format(params), "experiment/own.yaml")
    first, *_ = ask("-m", "--config-dir", "mine", "experiment=own", "loss.gamma=0.5,0.6").mistakes
    assert first.startswith(f"{where} (hydra.sweeper.params, mine/experiment/own.yaml:5): ")
