"""Names, docstrings and configuration files keep the house rules, and the checks can fail."""

import subprocess
import sys

import pytest

from tests.structure import names, parts
from tests.structure.sources import ROOT, read_sources, write_sources

HOOK = "from runner.hook import StatelessHook\n\n\nclass Speak(StatelessHook):\n    pass\n"


def known_algorithms():
    guests = [*ROOT.glob("conf/algo/*.yaml"), *ROOT.glob("runner/losses/[!_]*.py")]
    return (names.ALGORITHMS | {path.stem for path in guests}) - names.WORDS_OF_OTHERS


def test_the_program_does_not_know_the_names_of_its_algorithms():
    assert names.algorithm_problems(read_sources(ROOT), known_algorithms()) == []


@pytest.mark.parametrize(
    ("module", "text", "is_allowed"),
    [
        ("runner/trainer.py", "if name == 'dqn':\n    pass", False),
        ("runner/trainer.py", "class DQNTrainer:\n    pass", False),
        ("runner/trainer.py", "from runner.losses import dqn", False),
        ("runner/trainer.py", "print(f'{a} and TD3')", False),
        ("runner/trainer.py", "'''For example dqn.'''\n\n\ndef run():\n    '''Runs dqn.'''  # or ppo", True),
        ("runner/trainer.py", "sack = space = 'disaccord'", True),
        ("runner/learner/dqn.py", "", False),
        ("hooks/a.py", "def a(ppo_epochs):\n    pass", False),
        ("run.py", "main(algo='sac')", False),
        ("runner/losses/dqn.py", "def dqn(): pass", True),
        ("runner/builders.py", "from runner.losses.dqn import DQNLoss\n\ndef make_dqn_loss():\n    DQNLoss()", True),
        ("runner/builders.py", "__all__ = ['make_dqn_loss']", True),
        ("runner/builders.py", "def make_trainer():\n    make_dqn_loss()", False),
    ],
)
def test_the_name_of_an_algorithm_is_found(tmp_path, module, text, is_allowed):
    assert (names.algorithm_problems(write_sources(tmp_path, {module: text}), names.ALGORITHMS) == []) == is_allowed


def test_nothing_new_stands_at_the_top_of_the_repository():
    assert names.top_level_problems(ROOT) == []


def test_a_new_entry_at_the_top_is_found(tmp_path):
    for name in ("runner", "docs", ".git", "build", "hookline.egg-info", "mlruns"):
        (tmp_path / name).mkdir()
    assert names.top_level_problems(tmp_path) == [
        "docs does not belong at the top of the repository",
        "mlruns does not belong at the top of the repository",
    ]


def test_whatever_a_yaml_names_exists():
    assert parts.target_problems(ROOT) == []


def test_a_target_without_code_is_found(tmp_path):
    files = {
        "conf/env/good.yaml": "_target_: runner.envs.vector.make\nwrap: [{_target_: torch.nn.Linear}]",
        "conf/env/moved.yaml": "a: {_target_: runner.envs.gone.make}",
        "conf/env/renamed.yaml": "a: [{_target_: runner.envs.vector.build}]",
        "conf/env/foreign.yaml": "_target_: no_such_package.A",
        "runner/envs/vector.py": "def make():\n    build = 1",
    }
    write_sources(tmp_path, files)
    assert parts.target_problems(tmp_path) == [
        "conf/env/foreign.yaml: no no_such_package.A",
        "conf/env/moved.yaml: no runner.envs.gone.make",
        "conf/env/renamed.yaml: no runner.envs.vector.build",
    ]


def test_every_hook_has_its_file_and_its_yaml():
    assert parts.hook_problems(ROOT) == []


def test_a_hook_without_yaml_and_a_file_with_two_hooks_are_found(tmp_path):
    two = HOOK + HOOK.split("\n\n\n")[1].replace("Speak", "Shout")
    named = "_target_: hooks.speak.Speak"
    write_sources(tmp_path, {"hooks/speak.py": HOOK, "conf/hooks/speak.yaml": named, "hooks/__init__.py": ""})
    assert parts.hook_problems(tmp_path) == []
    write_sources(tmp_path, {"hooks/talk.py": HOOK, "hooks/both.py": two, "hooks/none.py": "class Helper: pass"})
    assert parts.hook_problems(tmp_path) == [
        "hooks/both.py: 2 subclasses of TrainerHookBase, one is expected",
        "hooks/both.py: no YAML names Speak",
        "hooks/both.py: no YAML names Shout",
        "hooks/none.py: 0 subclasses of TrainerHookBase, one is expected",
        "hooks/talk.py: no YAML names Speak",
    ]


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("def run():\n    pass\n", {"D100", "D103"}),
        ('"""Runs."""\n\n\nclass A:\n    def run(self):\n        pass\n', {"D101"}),
        ('"""Runs."""\n\n\ndef _run():\n    pass\n', set()),
    ],
)
def test_ruff_asks_for_public_docstrings(text, codes):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        str(ROOT / "pyproject.toml"),
        "--output-format=concise",
    ]
    command += ["--stdin-filename", "runner/example.py", "-"]
    found = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=ROOT).stdout
    assert {word for word in found.split() if word.startswith("D1")} == codes
