"""``learner.modules`` on the command line: each is complete, may be changed by key, and is checked as the run is."""

import itertools

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.report import Rejected
from runner.config.stored import read_yaml
from runner.config.tree import lookup
from runner.config.trust import packages_to_trust, unnameable_problems

BOTH = "learner.modules={left: {}, right: {loss: {gamma: 0.9}, env: {kwargs: {task: right}}, optimizer: {lr: 1e-3}}}"


def modules(*overrides, named=BOTH):
    return check(parse_arguments(["env=two_tasks", named, *overrides])).config["modules"]


def refused(*overrides, named=BOTH):
    with pytest.raises(Rejected) as caught:
        modules(*overrides, named=named)
    return [str(problem) for problem in caught.value.problems]


def test_what_a_module_does_not_say_is_the_runs_own():
    found = modules("optimizer.lr=0.5", "network.hidden=[7]")
    assert (found["left"]["optimizer"]["lr"], found["right"]["optimizer"]["lr"]) == (0.5, 1e-3)
    assert found["left"]["network"]["hidden"] == found["right"]["network"]["hidden"] == [7]
    assert (found["left"]["env"]["kwargs"], found["right"]["env"]["kwargs"]) == ({"task": "left"}, {"task": "right"})


def test_what_follows_another_value_follows_the_modules_own():
    found = modules("loss.gamma=0.5", "learning=[off_policy,reward_normalizer]")
    for module_id, gamma in {"left": 0.5, "right": 0.9}.items():
        assert found[module_id]["source"]["gamma"] == gamma
        assert found[module_id]["learning"]["reward_normalizer"]["gamma"] == gamma


def test_a_key_of_a_module_can_be_typed_once_it_is_named():
    found = modules("learner.modules.right.loss.gamma=0.95", "learner.modules.left.env.num_envs=2")
    assert found["right"]["loss"]["gamma"] == found["right"]["source"]["gamma"] == 0.95
    assert (found["left"]["env"]["num_envs"], found["right"]["env"]["num_envs"]) == (2, 1)


def test_a_module_may_have_another_part_which_takes_nothing_from_the_runs():
    rms = "learner.modules.left.optimizer={_target_: runner.learner.optimizers.sgd, lr: 0.1}"
    found = modules(rms)
    assert found["left"]["optimizer"] == {"_target_": "runner.learner.optimizers.sgd", "lr": 0.1}
    assert "betas" in found["right"]["optimizer"]


def test_without_modules_a_configuration_is_that_of_one_agent():
    config = check(parse_arguments([])).config
    assert (config["modules"], config["modules_to_train"]) == ({}, None)
    assert "modules" not in config["learner"]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("learner.modules.right.loss.gama=1", "did you mean learner.modules.right.loss.gamma?"),
        ("learner.modules.rigt.loss.gamma=1", "learner.modules.rigt.loss.gamma (command line): there is no such key"),
        ("learner.modules.right.loss.gamma=7", "expected a number from 0 to 1"),
        ("learner.modules.right.los={gamma: 1}", "a module has no such group; did you mean loss?"),
        ("learner.modules.right.loss=3", "expected a mapping"),
        ("learner.modules.default={}", "default is taken: give the module another name"),
        ("learner.modules.eval={}", "eval is taken: give the module another name"),
        ("learner.modules_to_train=[lef]", "there is no such module; did you mean left?"),
        ("learner.modules_to_train=3", "expected a list"),
        ("learner.modules_to_train=nope.chosen", "nope.chosen cannot be found: there is no module nope"),
        ("learner.modules_to_train=runner.minibatches.cycl", "runner.minibatches has no cycl; did you mean Cycle?"),
    ],
)
def test_a_mistake_in_a_module_is_one_line_with_its_key(typed, line):
    lines = refused(typed)
    assert any(line in one for one in lines), lines
    assert all("command line" in one for one in lines)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            "right.learner.precision=fp16",
            "learner.precision (command line): is said of the run: all modules are in one",
        ),
        (
            "right.learner.kind={_target_: runner.learner.learner.Learner}",
            "learner.kind (command line): is said of the r",
        ),
        ("right.learner.restore={right: outputs}", "one learner; learner.restore={<module>: <folder>}"),
        ("right.evaluation.every.env_steps=10", "at once; set evaluation.every"),
    ],
)
def test_what_holds_for_the_run_alone_is_refused_in_a_module(typed, line):
    for where, plus in itertools.product(("learner.modules.", "hooks.add_module.overrides."), ("", "+")):
        is_added = where.startswith("hooks")
        if plus and "every" in typed:  # it is there already
            continue
        more = ["hooks=[default,add_module]"] if is_added else []
        (found,) = refused(f"{plus}{where}{typed.removeprefix('right.') if is_added else typed}", *more)
        key = (
            line
            if not is_added
            else line.replace("learner.restore={<module>: <folder>}", "hooks.add_module.like=<module>")
        )
        assert key in found


def test_a_module_may_say_of_its_evaluation_what_the_run_says_and_how_many_episodes_it_has():
    found = modules(
        "learner.modules.right.evaluation={every: {env_steps: 500}, episodes: 3}", "evaluation.every.env_steps=500"
    )
    assert [one["evaluation"]["episodes"] for one in found.values()] == [10, 3]
    found = modules("evaluation.every.updates=70")
    assert [one["evaluation"]["every"] for one in found.values()] == [{"updates": 70}] * 2


@pytest.mark.parametrize("name", ["a-b", "a b", "a:b"])
def test_names_that_no_folder_or_key_can_have_are_refused(name, tmp_path):
    file = tmp_path / "conf" / "experiment" / "named.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f'# @package _global_\nlearner:\n  modules:\n    "{name}": {{}}\n')
    with pytest.raises(Rejected) as caught:
        check(parse_arguments(["experiment=named", "--config-dir", str(tmp_path / "conf")]))
    assert "letters, digits and underscores" in str(caught.value.problems[0])


def test_which_to_train_is_no_question_where_there_is_one():
    (line,) = refused("learner.modules_to_train=[left]", named="learner.modules={}")
    assert "there is only one module" in line


def test_a_mistake_of_the_run_is_told_once_and_not_for_each_module():
    lines = refused("loss.gamma=7")
    assert [line.partition(" ")[0] for line in lines] == ["loss.gamma"]


def test_a_module_that_a_hook_adds_is_checked_as_the_others():
    hook = ["hooks=[default,add_module]", "hooks.add_module.overrides.env.kwargs.task=right"]
    found = check(parse_arguments(["env=two_tasks", BOTH, *hook, "loss.gamma=0.25"])).config
    tree = found["hooks"]["add_module"]["overrides"]
    assert (tree["env"]["kwargs"]["task"], tree["source"]["gamma"]) == ("right", 0.25)
    lines = refused(*hook, "hooks.add_module.overrides.loss.gama=1")
    assert "did you mean hooks.add_module.overrides.loss.gamma?" in lines[0]


def test_the_stored_configuration_shows_each_module_in_full_and_a_resumed_run_takes_its_keys(ask):
    small = ["total_frames=400", "network.hidden=[8]", "source.warmup=100", "source.batch_size=8", "logger=csv",
             "~hooks.progress_bar", "evaluation.final_episodes=1", "hydra.run.dir=run"]  # fmt: skip
    assert ask("env=two_tasks", BOTH, *small, "collector.frames_per_batch=10").code == 0
    stored = read_yaml(ask.folder / "run" / ".hydra" / "config.yaml")
    assert lookup(stored, "learner.modules.right.loss.gamma") == 0.9
    assert lookup(stored, "learner.modules.left.loss.gamma") == "${loss.gamma}"
    answer = ask("resume=run", "total_frames=600", "optimizer.lr=1e-4", "learner.modules.right.optimizer.lr=2e-4")
    assert answer.code == 0, answer.err
    text = (ask.folder / "run" / "metrics.csv").read_text()
    assert "left/lr/default" in text
    assert (
        lookup(read_yaml(ask.folder / "run" / ".hydra" / "config.yaml"), "learner.modules.right.optimizer.lr") == 2e-4
    )
    fixed = ask("resume=run", "total_frames=800", "learner.modules.right.env.num_envs=2")
    assert (fixed.code, "a resumed run keeps its" in fixed.err) == (2, True)
    again = ask("resume=run", "total_frames=800", "learner.modules={third: {}}")
    assert (again.code, "a resumed run keeps its" in again.err) == (2, True)


def test_a_stored_run_may_not_name_any_function_to_choose_modules_by():
    stored = {"learner": {"modules_to_train": "os.system", "_target_": "runner.builders.make_learner"}}
    (problem,) = unnameable_problems(stored, [], set(), [], "run folder")
    assert str(problem).startswith("learner.modules_to_train (run folder): a resumed run may not name os.system")
    named = {"learner": {"modules_to_train": "mine.select"}}
    assert not list(unnameable_problems(named, ["mine"], set(), [], "run folder"))
    assert packages_to_trust(named) == ["mine"]
