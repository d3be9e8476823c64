"""What the README shows runs as it stands there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from tests.whole.children import fork
from tests.whole.runs import compose

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block_after(marker, language, number=0):
    text = README.split(f"<!-- {marker} -->", 1)[1]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def run_python(code, folder):
    script = folder / "script.py"
    script.write_text(code)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_example_without_yaml_trains_and_saves(tmp_path):
    code = block_after("example", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "env_steps=3000" in done.stdout
    assert [path.name for path in (tmp_path / "example" / "ckpt").iterdir()] == ["step-3000"]


def test_the_example_of_one_approximation_learns_the_fixed_point(tmp_path):
    # q = 1 + 0.9 max q has the fixed point 10. The target's gap shrinks by about 1 - 0.1 x 0.1 an update: e^-5 of it
    # is left after 500. The maximum over two noisy actions adds a little.
    example = block_after("approximation", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    code = "import torch; torch.manual_seed(0)\n" + example
    code += "\nprint(float(q.no_grad(states, actions).mean()))\n"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 8.0 < float(done.stdout) < 12.0


def test_the_example_of_shared_features_learns_by_both_heads_and_writes_one_of_them(tmp_path):
    code = "import torch; torch.manual_seed(0)\n" + block_after("features", "python")
    code += "\nshared = features.no_grad(states)"
    code += "\nprint(float((q.no_grad(shared, actions) - returns).square().mean() / returns.square().mean()))"
    code += "\nprint(float((v.no_grad(shared) - returns).square().mean() / returns.square().mean()))"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [float(error) < 0.01 for error in done.stdout.split()] == [True, True]  # returns are linear in the states
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["v.npz"]


def test_the_example_of_a_learner_lets_modules_come_and_go(tmp_path):
    code = "import torch; torch.manual_seed(0)\n" + block_after("learner", "python")
    code += "\nprint(list(learner.module), metrics['new']['loss/error'], metrics['new']['lr/default'])\n"
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    modules, rest = done.stdout.split("] ")
    assert modules == "['left', 'new'"
    error, lr = rest.split()
    assert float(error) < 0.01
    assert lr == "0.05"


def test_the_example_of_loggers_writes_what_it_says(tmp_path):
    done = run_python(block_after("loggers", "python"), tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["histograms.csv", "hparams.json", "metrics.csv", "videos"]
    assert [path.name for path in (folder / "videos").iterdir()] == ["clip-100.mp4"]


def test_any_environment_of_gymnasium_with_discrete_actions_can_be_named(tmp_path):
    (typed,) = re.findall(r"scripts/run (env=gym env\.id=\S+)", README)
    few = ("total_frames=1200", "source.warmup=200", "evaluation.episodes=1", "evaluation.final_episodes=1")
    child = fork(compose(*typed.split(), *few), tmp_path / "run")
    assert child.wait() == 0, child.output()


def test_what_one_run_records_others_learn_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record, *learn = [shlex.split(line.removeprefix("scripts/run"), comments=True)
                      for line in block_after("offline", "bash").splitlines()]  # fmt: skip
    few = ("logger=csv", "evaluation.final_episodes=1", "evaluation.episodes=1")
    *record, folder = record
    assert folder == "hydra.run.dir=outputs/medium"
    assert record[0] == "total_frames=8000"
    config = check(parse_arguments([*record, *few, "total_frames=1200"])).config
    child = fork(config, tmp_path / "outputs/medium")
    assert child.wait() == 0, child.output()
    assert len(learn) == 3
    for number, typed in enumerate(learn):
        config = check(parse_arguments([*typed, *few, "stop_after.updates=60", "evaluation.every.updates=30"])).config
        child = fork(config, tmp_path / str(number))
        assert child.wait() == 0, child.output()
        assert "60 updates in" in child.output()


@pytest.fixture
def my_project(tmp_path):
    """The folder that "Your own parts" describes."""
    files = {
        "my_parts.py": block_after("own", "python"),
        "conf/env/corridor.yaml": block_after("own", "yaml", 0),
        "conf/hooks/count_right.yaml": block_after("own", "yaml", 1),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def own_run(my_project, *typed):
    command = block_after("own", "bash").replace("python /path/to/hookline", f"{sys.executable} {ROOT}")
    command = command.replace("total_frames=5000", " ".join(("total_frames=3000 logger=csv", *typed)))
    return subprocess.run(command, shell=True, cwd=my_project, capture_output=True, text=True, timeout=120)


def column(file, name):
    header, *rows = (line.split(",") for line in file.read_text().splitlines())
    return [row[header.index(name)] for row in rows]


@pytest.mark.pins("TrainerHookBase", excludes="a hook's state is lost when a run goes on")
def test_an_environment_and_a_short_hook_from_outside_the_checkout_run_and_resume(my_project):
    hook = "class CountRight" + block_after("own", "python").split("class CountRight")[1]
    assert len([line for line in hook.splitlines() if line.strip()]) <= 15
    done = own_run(my_project, "hydra.run.dir=through")
    assert done.returncode == 0, done.stderr
    assert "resume=through 'trust=[my_parts]'" in done.stdout  # what a resumed run would ask for
    through = column(my_project / "through" / "metrics.csv", "train/right")
    assert len(through) >= 3
    assert own_run(my_project, "hydra.run.dir=run", "stop_after.env_steps=1500").returncode == 0
    typed = f"{sys.executable} {ROOT}/run.py resume=run trust=[my_parts] +stop_after.env_steps=100000"
    done = subprocess.run(typed.split(), cwd=my_project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert column(my_project / "run" / "metrics.csv", "train/right") == through


@pytest.mark.parametrize(
    ("was", "instead", "words"),
    [
        ("def __call__(self, batch):", "def __call__(self):", "CountRight at pre_steps_log: what stands there"),
        ('point = "pre_steps_log"', 'point = "pre_step_log"', "no hook point 'pre_step_log'; there are"),
        ("every: {batches: 1}", "every: {weeks: 1}", "hooks.count_right.every"),
    ],
)
def test_what_is_wrong_with_a_hook_from_outside_is_said_in_one_line(my_project, was, instead, words):
    for file in (my_project / "my_parts.py", my_project / "conf/hooks/count_right.yaml"):
        file.write_text(file.read_text().replace(was, instead))
    done = own_run(my_project, "explain=true")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
