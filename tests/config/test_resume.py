"""A run's folder is data: what it names is judged before it is looked up, and what is typed now comes on top."""

import copy
import json
import os
import sys

import pytest
import yaml

from runner.config.arguments import parse_arguments
from runner.config.check import CONF
from runner.config.composer import Composer, as_plain
from runner.config.report import Rejected
from runner.config.resume import resume
from runner.config.targets import is_allowed, is_nameable, resolve_target
from runner.runs import RunFolder, config_hash

HOSTILE = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "torch.load",
    "torch.hub.load",
    "torch.nn.functional.torch.load",
    "torch.nn.functional.torch.os.system",
    "torch.nn.modules.module.torch.hub.load",
    "torch.optim.optimizer.warnings.sys.exit",
    "runner.hook.re.compile",
    "runner.hook.ABC",
    "runner.seeding.np.load",
    "runner.runs.os.system",
    "runner.runs.claim_folder",
    "runner.checkpoint.manifest.write_manifest",
    "runner.config.jobs.Jobs",
    "runner.config.main.main",
    "hooks.progress_bar.sys.exit",
    "gymnasium.envs.registration.load_env_creator",
    "gymnasium.make",
    "gymnasium.envs.registration.importlib.import_module",
    "gymnasium.wrappers.RecordVideo",
    "torch.nn.init.normal_",
    "hostile_module.Hook",
    "antigravity.webbrowser.open",
]


@pytest.fixture(scope="module")
def defaults():
    return as_plain(Composer(CONF).compose([]).tree)


@pytest.fixture
def run(tmp_path, monkeypatch, defaults):
    """A stored run of ours; ``run.change(key=value)`` edits its configuration, ``run.resume(*argv)`` resumes it."""
    folder = tmp_path / "stored"
    (folder / ".hydra").mkdir(parents=True)
    tree = copy.deepcopy(defaults)
    monkeypatch.chdir(tmp_path)

    class Run:
        path = folder
        file = folder / ".hydra" / "config.yaml"

        def change(self, key, value):
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node[parent]
            node[last] = value
            self.file.write_text(yaml.safe_dump(tree))
            if (folder / "run.json").exists():  # as whoever makes up a run to do harm would
                RunFolder.open(folder).store_config(yaml.safe_dump(tree))

        def status(self, status):
            RunFolder.start(folder, algo="dqn", env="cartpole", seed=0, config_hash=config_hash(tree)).update(status)

        def resume(self, *argv):
            return resume(parse_arguments([f"resume={folder}", *argv]), folder)

    stored = Run()
    stored.change("seed", 5)
    stored.status("crashed")
    return stored


def mistakes(function, *argv):
    with pytest.raises(Rejected) as caught:
        function(*argv)
    return [str(problem) for problem in caught.value.problems]


def test_a_run_is_resumed_with_its_own_values(run):
    config = run.resume().config
    assert (config["seed"], config["source"]["gamma"], config["resume"]) == (5, 0.99, str(run.path))


def test_what_is_typed_comes_on_top_and_interpolations_follow(run):
    config = run.resume("total_frames=70000", "loss.gamma=0.5", "log_every.updates=3").config
    assert (config["total_frames"], config["source"]["gamma"]) == (70_000, 0.5)
    assert config["log_every"] == {"updates": 3.0}


def test_a_typed_group_is_composed_anew(run):
    config = run.resume("optimizer=sgd", "optimizer.lr=0.5", "hooks=null").config
    assert config["optimizer"] == {
        "_target_": "runner.learner.optimizers.sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0
    }  # fmt: skip
    assert config["hooks"] == {}


def test_what_was_typed_still_holds_when_the_run_is_resumed_again(run):
    run.resume("total_frames=70000", "trust=[json]").store(RunFolder.open(run.path))
    config = run.resume().config
    assert (config["total_frames"], config["trust"]) == (70_000, [])


@pytest.mark.parametrize(
    "typed",
    ["env=acrobot", "algo=dqn", "network=q_mlp", "network.hidden=[3]", "env.num_envs=2", "seed=7", "frame_skip=2"],
)
def test_what_a_checkpoint_cannot_follow_is_refused_in_words(run, typed):
    (line,) = mistakes(run.resume, typed)
    assert f"{typed} (command line): a resumed run keeps its " in line


def test_mistakes_typed_with_resume_are_reported_like_others(run):
    lines = mistakes(run.resume, "optimzer.lr=1", "seed=-1", "scheduler=linea", "hydra.run.dir=x")
    assert len(lines) == 4
    assert any("did you mean optimizer.lr?" in line for line in lines)


def test_a_finished_run_goes_on_only_if_it_grows(run):
    run.status("done")
    (line,) = mistakes(run.resume)
    assert "total_frames=<more than 50000>" in line
    assert mistakes(run.resume, "total_frames=50000") == [line]
    assert run.resume("total_frames=50001").config["total_frames"] == 50_001


def test_a_run_that_a_hook_has_stopped_goes_on_as_it_is(run):
    RunFolder.open(run.path).update(status="done", reason="train/return_mean reached 30")
    assert run.resume("hooks.log_reward.window=5").config["total_frames"] == 50_000


@pytest.mark.parametrize("target", HOSTILE)
def test_a_hostile_target_is_refused_before_it_can_do_anything(run, target, monkeypatch):
    (run.path.parent / "hostile_module.py").write_text("open('executed', 'w')\nclass Hook: ...\n")
    monkeypatch.syspath_prepend(str(run.path.parent))
    run.change("hooks.evil", {"_target_": target, "command": "touch executed"})
    before = sorted(os.listdir(run.path.parent))
    lines = mistakes(run.resume)
    assert any("hooks.evil" in line for line in lines)
    assert is_nameable(target, []) or "a resumed run may not name" in lines[0]
    assert sorted(os.listdir(run.path.parent)) == before
    assert not {"hostile_module", "antigravity"} & set(sys.modules)


@pytest.mark.parametrize("target", HOSTILE)
def test_no_alias_makes_a_hostile_object_allowed(target):
    named = is_nameable(target, [])
    assert not (named and is_allowed(resolve_target(target), []))


@pytest.mark.parametrize(
    "target",
    ["torch.nn.Linear", "torch.nn.modules.Linear", "torch.optim.Adam", "runner.builders.make_replay_buffer",
     "hooks.log_reward.LogReward", "gymnasium.envs.classic_control.CartPoleEnv"],
)  # fmt: skip
def test_parts_of_ours_and_of_the_libraries_are_allowed(target):
    assert is_nameable(target, [])
    assert is_allowed(resolve_target(target), [])


def test_the_refusal_says_what_to_type_and_that_works(run, monkeypatch):
    (run.path.parent / "trusted_module.py").write_text("class Hook:\n    def __init__(self): ...\n")
    monkeypatch.syspath_prepend(str(run.path.parent))
    run.change("hooks.mine", {"_target_": "trusted_module.Hook"})
    (line,) = mistakes(run.resume)
    assert "trust=[trusted_module]" in line
    assert "mine" in run.resume("trust=[trusted_module]").config["hooks"]
    monkeypatch.delitem(sys.modules, "trusted_module")


def test_the_folder_cannot_trust_itself(run, monkeypatch):
    (run.path.parent / "trusting_module.py").write_text("class Hook:\n    def __init__(self): ...\n")
    monkeypatch.syspath_prepend(str(run.path.parent))
    run.change("trust", ["trusting_module"])
    run.change("hooks.mine", {"_target_": "trusting_module.Hook"})
    (line,) = mistakes(run.resume)
    assert "a resumed run may not name trusting_module.Hook" in line
    assert "trusting_module" not in sys.modules


def test_an_object_is_judged_by_where_it_is_and_not_by_where_it_says_it_is():
    def spawn(command): ...

    spawn.__module__, spawn.__qualname__ = "hooks.recorder", "Recorder"
    assert not is_allowed(spawn, [])
    assert not is_allowed(resolve_target("hooks.recorder.Recorder.register"), [])
    assert is_allowed(resolve_target("hooks.recorder.Recorder"), [])
    assert not is_allowed(resolve_target("runner.checkpoint.manifest.write_manifest"), [])  # ours, but it writes files


@pytest.mark.parametrize("module", ["runner.config.jobs", "runner.runs", "runner.sweeps.any", "runner.__main__"])
def test_modules_that_start_runs_or_make_folders_are_not_even_looked_up(module):
    assert not is_nameable(f"{module}.anything", [])


def test_a_target_behind_an_interpolation_is_judged_too(run):
    run.change("hooks.evil", {"_target_": "${hooks.evil.command}", "command": "os.system"})
    assert "os.system" in mistakes(run.resume)[0]


def test_a_nested_target_is_judged_too(run):
    run.change("env.make", {"_target_": "gymnasium.envs.classic_control.CartPoleEnv", "x": [{"_target_": "os.abort"}]})
    assert "os.abort" in mistakes(run.resume)[0]


def test_the_module_of_an_environment_id_is_judged_too(run):
    run.change("env.id", "antigravity:CartPole-v1")
    assert "may not name antigravity" in mistakes(run.resume)[0]
    run.change("env.id", "their_package:CartPole-v1")
    assert "trust=[their_package]" in mistakes(run.resume)[0]
    assert not {"antigravity", "their_package"} & set(sys.modules)


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "x${now:%Y}", "${${a}:b}", "${oc.create:{a: 1}}", "${x:", "${f:${a}}"]
)
def test_resolvers_are_not_called_for_a_stored_value(run, value):
    run.change("logger.csv.path", value)
    (line,) = mistakes(run.resume)
    assert line.startswith("logger.csv.path")
    assert "is not read back from a run" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!python/object/apply:os.system ['touch executed']", "could not determine a constructor"),
        ("a: &x [1]\nb: *x\n", "it has aliases"),
        ("[1, 2]", "is not a mapping"),
        ("a: [", "the file is damaged: line 1: "),
        ("a: " + "x" * 2**20, "it has more than"),
    ],
    ids=["tag", "alias", "list", "syntax", "size"],
)
def test_a_damaged_or_hostile_file_is_one_line(run, text, words):
    run.file.write_text(text)
    (line,) = mistakes(run.resume)
    assert words in line
    assert not (run.path.parent / "executed").exists()


def test_a_file_that_is_cut_short_or_gone_is_said_to_be_damaged_and_what_to_do(run):
    mended = "; put back a copy of it, or start a new run"
    run.file.write_text("a: [")
    assert mistakes(run.resume)[0].endswith(mended)
    run.file.unlink()
    assert mistakes(run.resume)[0] == f"{run.file} (run folder): the file is gone{mended}"
    record = run.path / "run.json"
    record.write_bytes(record.read_bytes()[:100])
    (line,) = mistakes(run.resume)
    assert f"{record} is damaged (" in line
    assert line.endswith(mended)
    record.unlink()
    run.change("seed", 5)
    assert mistakes(run.resume)[0].endswith(f"{run.path} is damaged: its run.json is gone{mended}")


def test_a_folder_without_a_run_is_one_line(tmp_path, ask):
    (ask.folder / "some").mkdir()
    (ask.folder / "some" / "link").symlink_to("/")  # which matters only in the folder of a run
    for key in ("resume", "sync"):
        answer = ask(f"{key}=some")
        assert (answer.code, len(answer.mistakes)) == (2, 1)
        assert "some is not a run's folder: it has no run.json" in answer.mistakes[0]


def test_a_damaged_run_json_is_one_line(run):
    (run.path / "run.json").write_text(json.dumps({"schema": 1}))
    (line,) = mistakes(run.resume)
    assert "damaged" in line


def test_a_changed_configuration_is_not_taken_for_that_of_the_run(run):
    text = run.file.read_text()
    run.file.write_text(text.replace("lr: 0.001", "lr: 0.003"))
    (line,) = mistakes(run.resume)
    assert line.startswith(str(run.file))
    assert "damaged, or edited" in line
    run.file.write_text(text)
    assert run.resume().config["optimizer"]["lr"] == 0.001


def test_a_kill_between_the_two_files_of_a_resume_leaves_a_run_that_resumes(run, monkeypatch):
    resumed, replace = run.resume("optimizer.lr=0.5"), os.replace

    def kill(source, target):
        if str(target).endswith("config.yaml"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        resumed.store(RunFolder.open(run.path))
    monkeypatch.undo()
    os.chdir(run.path.parent)
    assert run.resume().config["optimizer"]["lr"] == 0.001
    run.resume("optimizer.lr=0.5").store(RunFolder.open(run.path))
    assert run.resume().config["optimizer"]["lr"] == 0.5


def test_an_address_in_the_folder_is_not_connected_to_unless_it_is_typed(run):
    run.change("logger.mlflow.tracking_uri", "http://127.0.0.1:9")
    assert run.resume().config["logger"]["mlflow"]["tracking_uri"] is None
    typed = run.resume("logger.mlflow.tracking_uri=sqlite:///mine.db").config
    assert typed["logger"]["mlflow"]["tracking_uri"] == "sqlite:///mine.db"


@pytest.mark.parametrize(
    ("stored", "typed", "line"),
    [
        ({}, "learner.restore={default: elsewhere}", "learner.restore (command line): a resumed run goes on"),
        ({}, "optimizer=sgd", "optimizer (command line): a resumed run keeps its optimizer"),
        ({}, "optimizer.weight_decay=0.1", "optimizer (command line): a resumed run keeps its optimizer"),
        ({"source.storage": "memmap"}, "source.storage=tensor", "source.storage=tensor (command line): a resumed run"),
        ({"source.storage": "memmap"}, "source.capacity=100", "source.capacity=100 (command line): a resumed run keeps "
         "source.capacity=50000"),
        ({"env.num_envs": 4, "collector.num_collectors": 2}, "collector.async_collection=true",
         "collector (command line): a resumed run keeps its replay rows: whether each worker has batches of its own"),
        ({"env.num_envs": 4, "collector.num_collectors": 2, "collector.async_collection": True},
         "collector.num_collectors=4", "collector (command line): a resumed run keeps its replay rows, of 2 environ"),
    ],
)  # fmt: skip
def test_what_its_checkpoints_cannot_follow_is_refused_before_anything_is_built(run, stored, typed, line):
    for key, value in stored.items():
        run.change(key, value)
    assert run.resume(typed)  # there is no checkpoint yet
    RunFolder.open(run.path).update(saved_env_steps=10)
    (told,) = mistakes(run.resume, typed)
    assert told.startswith(line)
    assert told.endswith("leave it out, or start a new run")
    assert run.resume("optimizer.lr=0.5", "scheduler=constant")


def test_what_changes_is_said_with_both_values(run):
    lines = run.resume("total_frames=70000", "scheduler=constant", "trust=[json]").changes
    assert "total_frames: 50000 -> 70000" in lines
    assert "scheduler.end: 0.0 -> (nothing)" in lines
    assert not any(line.startswith(("trust", "resume")) for line in lines)
    assert run.resume().changes == []
