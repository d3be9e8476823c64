"""The command line with real runs: folders, exit codes, sweeps, resuming, code of the user's."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from runner.runs import RunFolder

QUICK = ("total_frames=60", "logger=csv", "hooks=null", "evaluation.final_episodes=1", "env.max_episode_steps=20",
         "collector.frames_per_batch=10", "source.warmup=50")  # fmt: skip


def runs(folder=Path("outputs")):
    return sorted(path.parent for path in folder.rglob("run.json"))


@pytest.fixture
def package(ask, monkeypatch):
    """A package and a folder of configurations of the user's, beside the shell and outside of the checkout."""
    (ask.folder / "my_conf" / "hooks").mkdir(parents=True)
    names = set(sys.modules)

    def write(name: str, body: str) -> None:
        head = "import os, signal\nfrom runner.hook import StatelessHook\n\n\nclass Mine(StatelessHook):\n"
        text = f"{head}    def __init__(self, at: int = 20): self.at = at\n\n"
        text += "    def register(self, trainer, name=None):\n        self.trainer = trainer\n"
        text += f"        trainer.register_op('post_steps', self.act)\n\n    def act(self):\n        {body}\n"
        (ask.folder / f"{name}.py").write_text(text)
        (ask.folder / "my_conf" / "hooks" / "mine.yaml").write_text(f"mine:\n  _target_: {name}.Mine\n  at: 20\n")

    yield write
    for name in set(sys.modules) - names:
        if name.startswith("user_"):
            del sys.modules[name]


def test_a_run_gets_a_folder_of_its_own(ask, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py"])
    answer = ask(*QUICK, "seed=3")
    assert answer.code == 0
    (folder,) = runs()
    assert folder.parent == Path("outputs/dqn-cartpole")
    assert folder.name.endswith("-s3")
    assert {".hydra", "command.txt", "run.json", "run.log", "metrics.csv", "ckpt"} <= set(os.listdir(folder))
    assert (folder / "command.txt").read_text() == shlex.join(["python", "run.py", *QUICK, "seed=3"]) + "\n"
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["algo"], record["env"], record["seed"]) == ("done", "dqn", "cartpole", 3)
    assert "[INFO]" not in answer.out + answer.err


def test_a_folder_that_holds_a_run_is_not_used_again(ask):
    assert ask(*QUICK, "hydra.run.dir=here").code == 0
    before = (ask.folder / "here" / "metrics.csv").read_text()
    answer = ask(*QUICK, "hydra.run.dir=here")
    assert (answer.code, len(answer.mistakes)) == (2, 1)
    assert "resume=here goes on with it" in answer.mistakes[0]
    assert (ask.folder / "here" / "metrics.csv").read_text() == before


def test_a_folder_that_cannot_be_made_is_a_mistake(ask):
    (line,) = ask(*QUICK, "hydra.run.dir=/proc/here").mistakes
    assert line.startswith("hydra.run.dir=/proc/here (command line): the folder cannot be made: ")
    (ask.folder / "outputs").touch()
    (line,) = ask(*QUICK).mistakes
    assert line.startswith("outputs/dqn-cartpole/")
    assert "the folder cannot be made: " in line


def test_another_environment_gives_the_folder_its_name(ask):
    assert ask(*QUICK, "env=gym", "env.id=Acrobot-v1").code == 0
    (folder,) = runs()
    assert folder.parent.name == "dqn-Acrobot-v1"


def test_explain_describes_and_writes_nothing(ask):
    answer = ask("explain=true")
    assert answer.code == 0
    assert "post_steps" in answer.out
    assert os.listdir(ask.folder) == []


def test_help_and_the_flags_of_hydra_write_nothing(ask):
    assert "python run.py -m seed=0,1,2" in ask("--help").out
    assert "total_frames: 77" in ask("--cfg", "job", "total_frames=77").out
    assert os.listdir(ask.folder) == []


def test_a_sweep_runs_every_job_and_tells_of_the_one_that_fails(ask):
    answer = ask("-m", *QUICK, "env.id=CartPole-v1,Pendulum-v1,Acrobot-v1", "seed=4")
    assert answer.code == 1
    folders = [folder.name for folder in runs() if json.loads((folder / "run.json").read_text())["status"] == "done"]
    assert folders == ["0-s4", "2-s4"]
    assert "job 1 (env.id=Pendulum-v1) failed: action values need discrete actions" in answer.err
    table = answer.out.splitlines()[-3:]
    assert [line.split()[:2] for line in table] == [["0", "done"], ["1", "failed"], ["2", "done"]]
    assert float(table[0].split()[2]) > 0
    assert "Traceback" not in answer.err


def test_a_failure_is_one_line_and_its_traceback_is_in_the_log(ask, package):
    package("user_failing", "raise ValueError('no luck')")
    answer = ask("--config-dir", "my_conf", *QUICK, "hooks=mine")
    assert answer.code == 1
    assert len([line for line in answer.err.splitlines() if not line.startswith("note: hooks is typed 2 times")]) == 1
    assert "no luck" in answer.err
    (folder,) = runs()
    assert "ValueError: no luck" in (folder / "run.log").read_text()


def test_a_hook_of_the_users_runs_from_outside_the_checkout(ask, package):
    package("user_hook", "open('acted', 'w').write(str(self.at))")
    assert ask("--config-dir", "my_conf", *QUICK, "hooks=[mine]", "hooks.mine.at=7").code == 0
    assert (ask.folder / "acted").read_text() == "7"


def test_a_mistake_in_the_users_hook_is_found_by_its_signature(ask, package):
    package("user_checked", "pass")
    (line,) = ask("--config-dir", "my_conf", "hooks=mine", "hooks.mine.at=x").mistakes
    assert line == 'hooks.mine.at = "x" (command line): expected a whole number'


def test_a_preempted_job_ends_the_sweep(ask, package):
    package("user_killer", "self.trainer.progress.env_steps == 20 and os.kill(os.getpid(), signal.SIGTERM)")
    answer = ask("-m", "--config-dir", "my_conf", *QUICK, "hooks=mine", "seed=0,1,2")
    assert answer.code == 75
    not_started, go_on = answer.out.splitlines()[-2:]
    assert not_started == "not started jobs 1 to 2, of 3"
    assert go_on.startswith("go on       python run.py -m --config-dir my_conf ")
    assert go_on.endswith(" hooks=mine seed=0,1,2 resume=auto")
    assert [json.loads((folder / "run.json").read_text())["status"] for folder in runs()] == ["preempted"]


def test_a_preempted_run_is_resumed_by_folder_and_by_auto(ask, package):
    package("user_stopper", "self.trainer.progress.env_steps == 20 and os.kill(os.getpid(), signal.SIGTERM)")
    typed = ("--config-dir", "my_conf", *QUICK, "hooks=mine")
    assert ask(*typed).code == 75
    (folder,) = runs()
    assert ask(*typed, "resume=auto", "trust=[user_stopper]").code == 0
    assert runs() == [folder]
    assert json.loads((folder / "run.json").read_text())["progress"]["env_steps"] == 60
    answer = ask("--config-dir", "my_conf", f"resume={folder}", "total_frames=90", "trust=[user_stopper]")
    assert answer.code == 0
    assert json.loads((folder / "run.json").read_text())["progress"]["env_steps"] == 90
    commands = (folder / "command.txt").read_text().splitlines()
    assert len(commands) == 3
    assert commands[2].endswith("total_frames=90 'trust=[user_stopper]'")


def test_auto_starts_a_run_where_there_is_none_and_refuses_to_choose_between_two(ask):
    assert ask(*QUICK, "resume=auto").code == 0
    assert ask(*QUICK).code == 0
    first, second = runs()
    for folder in (first, second):
        RunFolder.open(folder).update("preempted")
    answer = ask(*QUICK, "resume=auto")
    assert (answer.code, len(answer.mistakes)) == (2, 1)
    assert str(first) in answer.mistakes[0]
    assert str(second) in answer.mistakes[0]
    assert runs() == [first, second]
    told = ask(*QUICK, "resume=auto", "seed=0", "optimizer.lr=3e-3").err
    assert told.count("note: resume=auto finds no unfinished run with these settings, a new one begins; outputs/") == 1
    assert "-s0 differs in optimizer.lr: 0.001 -> 0.003\n" in told.replace("-2 differs", " differs")
    runs_before = len(runs())
    assert ask(*QUICK, "resume=auto", "seed=9").code == 0
    assert len(runs()) == runs_before + 1


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("learner.loss_weights={critic:2}", "learner.loss_weights.critic: the loss has no such term; it has q"),
        ("env.id=Pendulum-v1", "action values need discrete actions; Pendulum-v1 takes vectors of shape (1,)"),
    ],
)
def test_a_value_that_only_building_finds_out_about_leaves_no_folder_behind(ask, typed, line):
    answer = ask(typed, "tuned=null", "logger=csv")
    assert answer.code == 2
    assert f"{line}; nothing was started" in answer.err
    assert os.listdir(ask.folder) == []


def test_a_value_that_only_hydra_knows_is_checked_when_it_is_known(ask):
    answer = ask(*QUICK, "seed=${hydra:job.name}")
    assert answer.code == 2
    assert answer.err.startswith('seed = "run" (')
    assert answer.err.endswith("expected a whole number >= 0; nothing was started\n")
    assert not runs()


def test_what_no_memory_can_hold_is_a_mistake(ask):
    answer = ask("network.hidden=[1e14]", "logger=csv")
    assert answer.code == 2
    assert answer.err.startswith("there is not enough memory for this: ")
    assert os.listdir(ask.folder) == []


def test_a_device_that_is_not_here_is_one_line_and_leaves_nothing(ask):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for extra in ("explain=false", "explain=true"):
        answer = ask("device=cuda", "logger=csv", extra)
        assert answer.code == 2
        assert "device=cuda: torch finds no GPU here" in answer.err
    assert os.listdir(ask.folder) == []


def test_a_setting_that_a_resumed_run_refuses_does_not_stick(ask):
    ask(*QUICK, "hydra.run.dir=one")
    refused = ask("resume=one", "total_frames=90", "source.capacity=3")
    assert refused.code == 2
    assert ask("resume=one", "total_frames=90").code == 0


def test_a_run_that_cannot_learn_says_so(ask):
    told = ask(*QUICK, "frame_skip=2").err
    assert told.count("warning: this run learns nothing: source.warmup=50 env steps leave no update in") == 1
    assert "total_frames=60, which with frame_skip=2 are 30 env steps" in told
    assert "learns nothing" not in ask(*QUICK).err


def test_a_crash_says_what_to_type_to_go_on(ask, package):
    package("user_breaks", "assert self.trainer.progress.env_steps < 40, 'not that far'")
    typed = ("--config-dir", "my_conf", *QUICK, "hooks=mine", "hydra.run.dir=run")
    assert "go on" not in ask(*typed, "checkpoint.every.env_steps=1000").err  # there is nothing to go on from
    last = ask(*typed[:-1], "hydra.run.dir=two", "checkpoint.every.env_steps=10").err.splitlines()[-1]
    assert last == "go on       python run.py resume=two 'trust=[user_breaks]'"


def test_an_environment_that_is_broken_from_the_start_starts_nothing(ask):
    (ask.folder / "user_broken.py").write_text(
        "from gymnasium.envs.classic_control.cartpole import CartPoleEnv\n\n\nclass Broken(CartPoleEnv):\n"
        "    def step(self, action):\n        raise RuntimeError('no')\n"
    )
    answer = ask("env=gym", "env.make={_target_: user_broken.Broken}", "logger=csv")
    assert answer.code == 1
    assert "trial episode" in answer.err
    assert answer.err.endswith("; nothing was started\n")
    assert not runs()


def test_the_help_names_exit_codes_variables_and_an_example_that_works(ask):
    text = ask("--help").out
    for words in ("75 stopped by a signal", "HOOKLINE_GRACE_SECONDS", "CKPT_BACKEND", "MLFLOW_TRACKING_URI", "trust=[]",
                  "compile=trace", "source.storage=tensor", "env.max_restarts=100"):  # fmt: skip
        assert words in text
    (example,) = re.findall(r"(\+env\.kwargs\S+)", text)
    assert ask(example, "explain=true").code == 0


def test_a_folder_elsewhere_is_shown_as_it_was_typed(ask, package, tmp_path):
    package("user_elsewhere", "raise ValueError('no luck')")
    folder = tmp_path / "elsewhere"
    answer = ask("--config-dir", "my_conf", *QUICK, "hooks=mine", f"hydra.run.dir={folder}")
    assert f"; log: {folder}/run.log" in answer.err
