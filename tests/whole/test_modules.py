"""Several modules in one run: each learns as if it were alone, may be frozen, may come later and go earlier."""

import copy
import json
import signal
from functools import partial

import pytest
import torch

from runner.checkpoint.store import CheckpointStore
from runner.config import experiment as running
from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.at_points import AtPoint
from runner.config.check import check
from runner.config.experiment import run_experiment
from runner.config.export import export_run
from runner.config.summary import explain_schedule
from runner.data.memmap import MemMapStorage
from runner.envs.two_tasks import TwoTasks
from runner.points import POINTS
from runner.runs import RunFolder
from runner.spec import CheckpointError, ConfigError, EnvFault
from tests.whole.children import fork, spawn
from tests.whole.modules import KINDS, NAMED, Alternating, built, close, compose_modules, die_at, learnt, trained
from tests.whole.runs import differences, end_of, rows_of

LEFT = "learner.modules={left: {}}"
COMES = ("hooks=[default,add_module]", "hooks.add_module.at.env_steps=400")
GOES = ("hooks=[default,remove_module]", "hooks.remove_module.at.env_steps=600",
        "hooks.remove_module.module_id=right")  # fmt: skip
BOTH = ("hooks=[default,add_module,remove_module]", *COMES[1:], *GOES[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_learns_and_is_logged_and_counted_by_itself(kind, tmp_path):
    config, folder = compose_modules(kind=kind), tmp_path / "run"
    before = built(config)
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    last = json.loads((folder / "run.json").read_text())
    assert last["progress"]["env_steps"] == 1200
    names = {name for row in rows_of(folder) for name, value in row.items() if value}
    for module_id in ("left", "right"):
        for name in ("train/return_mean", "lr/default"):
            assert f"{module_id}/{name}" in names
        assert any(name.startswith(f"{module_id}/loss/") for name in names)
    metrics = last["metrics"]
    assert metrics["eval/return_mean"] == (metrics["eval/left/return_mean"] + metrics["eval/right/return_mean"]) / 2
    assert f"{'left':<9} " in child.output()
    after = trained(config)
    for module_id in ("left", "right"):
        assert after.modules[module_id].progress.env_steps == 600
        assert differences(learnt(before, module_id)["networks"], learnt(after, module_id)["networks"])
    close(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_learns_the_same_bits_whichever_others_there_are(kind):
    both = trained(compose_modules(kind=kind))
    alone = trained(compose_modules("total_frames=600", kind=kind, modules=LEFT))
    assert differences(learnt(both, "left"), learnt(alone, "left")) == []
    turned = "learner.modules={right: {env: {kwargs: {task: right}}}, left: {}}"
    assert (
        differences(learnt(both, "right"), learnt(trained(compose_modules(kind=kind, modules=turned)), "right")) == []
    )


def test_two_modules_of_the_same_settings_begin_with_other_weights():
    experiment = built(compose_modules(modules="learner.modules={left: {}, other: {}}"))
    assert len(differences(learnt(experiment, "left")["networks"], learnt(experiment, "other")["networks"])) > 2
    close(experiment)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_module_keeps_its_bits_while_it_plays_and_is_evaluated(kind):
    config = compose_modules("learner.modules_to_train=[left]", kind=kind)
    before, after = built(config), trained(config)
    frozen, once = learnt(after, "right"), learnt(before, "right")
    assert differences(frozen["networks"], once["networks"]) == []
    assert frozen["progress"]["env_steps"] == 600
    assert frozen["progress"]["updates"] == 0
    assert set(after.evaluation.run().parts) == {"left", "right"}
    all_trained = trained(compose_modules(kind=kind))
    assert differences(learnt(after, "left"), learnt(all_trained, "left")) == []
    close(before)


def only_right(module_id, batch):
    return module_id == "right" and "right" in batch.keys()


def test_a_function_says_which_modules_are_trained():
    selected = f"learner.modules_to_train={__name__}.only_right"
    after = trained(compose_modules(selected))
    assert after.modules["left"].progress.updates == 0
    assert after.modules["right"].progress.updates > 0


def test_a_function_is_asked_once_for_each_update_with_the_batch_of_all_modules():
    experiment = built(compose_modules("source.optim_steps=4", "total_frames=400"))
    experiment.trainer.learner.modules_to_train = selector = Alternating()
    experiment.trainer.train()
    updates = 4 * (400 // 20 - 200 // 20 + 1)
    assert experiment.trainer.progress.updates == updates
    assert [module_id for module_id, _, _ in selector.asked] == ["left", "right"] * updates
    assert {(ids, rows) for _, ids, rows in selector.asked} == {(("left", "right"), 10)}
    assert [one.progress.updates for one in experiment.modules.values()] == [updates // 2] * 2
    close(experiment)


def never_left(module_id, batch):
    return module_id == "right"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, {"left": 30, "right": 30, "run": 30}),
        ("[left]", {"left": 30, "right": 0, "run": 30}),
        ("[]", {"left": 0, "right": 0, "run": 120}),
        (f"{__name__}.never_left", {"left": 0, "right": 30, "run": 120}),
    ],
)
def test_a_batch_is_over_once_all_have_stopped_who_may_be_updated(chosen, expected):
    stops = "{learning: {stop: {_target_: tests.whole.modules.StopsAtOnce}}}"
    selected = () if chosen is None else (f"learner.modules_to_train={chosen}",)
    config = compose_modules(*selected, kind="on_policy", modules=f"learner.modules={{left: {stops}, right: {stops}}}")
    after = trained(config)
    found = {module_id: one.progress.updates for module_id, one in after.modules.items()}
    assert found | {"run": after.trainer.progress.updates} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_comes_in_mid_run_learns_and_changes_no_bit_of_the_others(kind):
    with_third = trained(compose_modules(*COMES, "total_frames=1600", kind=kind))
    assert list(with_third.modules) == ["left", "right", "another"]
    steps = {module_id: one.progress.env_steps for module_id, one in with_third.modules.items()}
    assert steps["left"] == steps["right"] == steps["another"] + 200
    assert with_third.modules["another"].progress.updates > 0
    without = trained(compose_modules(f"total_frames={2 * steps['left']}", kind=kind, **_scheduled_as(1600)))
    for module_id in ("left", "right"):
        assert differences(learnt(with_third, module_id), learnt(without, module_id)) == []


def _scheduled_as(frames):
    """Two modules whose learning rates fall as in a run of so many frames."""
    each = frames // 2
    return {"modules": f"learner.modules={{left: {{scheduler: {{env_steps: {each}}}}}, "
                       f"right: {{scheduler: {{env_steps: {each}}}, env: {{kwargs: {{task: right}}}}}}}}"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_that_goes_is_gone_and_changes_no_bit_of_the_other(kind):
    after = trained(compose_modules(*GOES, kind=kind))
    assert list(after.modules) == ["left"]
    assert after.modules["left"].progress.env_steps == 900
    state = after.trainer.state_dict()
    assert list(state["learner"]["rl_module"]) == ["left"]
    assert list(state["source"]) == list(state["modules"]) == ["left"]
    assert not [name for name in after.hooks if name.startswith("right/")]
    alone = trained(compose_modules("total_frames=900", kind=kind, modules="learner.modules={left: {scheduler: "
                                                                           "{env_steps: 600}}}"))  # fmt: skip
    assert differences(learnt(after, "left"), learnt(alone, "left")) == []


def test_an_id_that_comes_again_begins_anew():
    again = ("hooks.add_module.module_id=right", "hooks.add_module.at.env_steps=1200")
    config = compose_modules(*BOTH, *again, "hooks.add_module.overrides.env.kwargs.task=right")
    before, after = built(config), trained(config)
    fresh, once = learnt(after, "right"), learnt(before, "right")
    for part in ("networks", "optimizations", "source", "progress"):
        assert differences(fresh[part], once[part]) == []
    close(before)


def test_a_module_may_begin_with_the_weights_of_another():
    config = compose_modules(*COMES, "hooks.add_module.like=left", "hooks.add_module.at.env_steps=1190")
    after = trained(config)
    assert differences(learnt(after, "another")["networks"], learnt(after, "left")["networks"]) == []
    ours = after.modules["another"].module.networks["q"].model
    assert ours is not after.modules["left"].module.networks["q"].model


OTHER_NETWORK = "hooks.add_module.overrides.network.hidden=[8]"
TAKEN = "hooks.add_module.module_id=right"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([*COMES, "hooks.add_module.like=left", OTHER_NETWORK], "add_module: .*another cannot begin with .* of left"),
        ([*COMES, "hooks.add_module.like=nobody"], "add_module: there is no module nobody; there are left, right, an"),
        ([*COMES, TAKEN], "add_module: there is a module right at that time"),
        ([*BOTH, TAKEN], "add_module: there is a module right at that time"),  # it goes, but later
        ([*COMES, "hooks.add_module.like=another"], "add_module: module another, whose weights .*, is not there at"),
        ([*GOES, "hooks.remove_module.module_id=third"], "remove_module: there is no module third; there are left"),
        ([*BOTH, "hooks.remove_module.module_id=another", "hooks.add_module.at.env_steps=800"],
         "remove_module: module another is not there at that time"),
        ([*BOTH, "hooks.add_module.at.env_steps=800", "hooks.add_module.like=right"],
         "add_module: module right, .* is not there at that time"),
    ],
)  # fmt: skip
def test_who_cannot_come_or_go_when_the_time_has_come_is_said_in_one_line_before_anything_runs(typed, words):
    kept = [one for index, one in enumerate(typed) if one.partition("=")[0] not in
            [later.partition("=")[0] for later in typed[index + 1 :]]]  # fmt: skip
    with pytest.raises(ConfigError, match=f"^hooks.{words}") as raised:
        built(compose_modules(*kept))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "typed",
    [
        ("hooks=[default,remove_module,add_module]", "hooks.remove_module.module_id=another",
         "hooks.add_module.at.env_steps=400", "hooks.remove_module.at.frames=600"),
        ("hooks=[default,remove_module,add_module]", "hooks.remove_module.module_id=right", TAKEN,
         "hooks.add_module.at.env_steps=600", "hooks.remove_module.at.env_steps=600"),
        (*COMES[:1], TAKEN, "hooks.add_module.at.env_steps=5000"),  # when the run is over
        (*BOTH[:1], "hooks.remove_module.module_id=right", TAKEN, "hooks.add_module.at={updates: 60}",
         "hooks.remove_module.at.env_steps=600"),  # nobody knows what comes first
    ],
)  # fmt: skip
def test_who_can_come_and_go_when_the_time_has_come_does_so_whatever_the_order_of_the_hooks(typed):
    close(built(compose_modules(*typed)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_before_between_and_after_who_comes_and_goes_ends_as_one_never_stopped(kind, tmp_path):
    config = compose_modules(*BOTH, "loss.gamma=0.9", "scheduler=linear", kind=kind)
    whole = tmp_path / "whole"
    assert fork(config, whole).wait() == 0
    state = end_of(config, whole)["state"]
    assert list(state["source"]) == ["left", "another"]
    resumed = tmp_path / "resumed"
    for env_steps in (200, 500, 800):
        prepared = copy.deepcopy(config)
        child = fork(prepared, resumed, lambda env_steps=env_steps: _stop_at(env_steps))
        assert child.wait() == 75, child.output()
    assert fork(config, resumed).wait() == 0
    assert differences(end_of(config, resumed), end_of(config, whole)) == []


def _stop_at(env_steps):
    """Let the trainer of this process stop as if it were told to by a signal once it is there."""
    at_safe_point = running._at_safe_point

    def stopping(trainer, run, signals, mlflow):
        if trainer.progress.env_steps >= env_steps:
            signals._reason = "SIGTERM"
        return at_safe_point(trainer, run, signals, mlflow)

    running._at_safe_point = stopping


def test_a_checkpoint_with_a_module_that_nobody_adds_is_refused_in_one_line(tmp_path):
    config, folder = compose_modules(*COMES), tmp_path / "run"
    assert fork(config, folder).wait() == 0
    without = compose_modules("total_frames=2400")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        run_experiment(without, folder, resume=True)


def test_a_checkpoint_cannot_say_that_files_of_a_module_are_elsewhere(tmp_path):
    config, folder = compose_modules(*COMES), tmp_path / "run"
    assert fork(config, folder).wait() == 0
    experiment = assemble({**config, "logger": {}}, RunFolder.open(folder))
    state, _ = CheckpointStore(run=folder).load()
    for since in ("../../there", -1, 2**63, None, True):
        state["collector"]["members"]["another"][2] = since
        with pytest.raises(CheckpointError, match="a module that came after"):
            experiment.trainer.load_state_dict(state)
    close(experiment)


def test_rows_on_the_disk_are_given_back_by_what_the_module_itself_has_saved(tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        MemMapStorage,
        "_release_between",
        lambda storage, totals: told.setdefault(storage._run.place, []).append(totals),
    )
    modules = "learner.modules={left: {}, right: {collector: {frames_per_batch: 30}}}"
    config = compose_modules("source.storage=memmap", "checkpoint.every.env_steps=400", modules=modules)
    (tmp_path / "run").mkdir()
    run_experiment(config, tmp_path / "run")
    assert told == {
        "modules/left": [[100], [100, 200], [200, 300]],
        "modules/right": [[300], [300, 600], [600, 900]],
    }


def test_a_module_stops_early_by_its_own_divergence():
    modules = (
        "learner.modules={left: {learning: {kl_stop: {limit: 1e-9}}, optimizer: {lr: 0.01}}, "
        "right: {learning: {kl_stop: {limit: 1e6}}}}"
    )
    config = compose_modules("learning=[gae,on_policy,kl_stop]", kind="on_policy", modules=modules)
    after = trained(config)
    updates = {module_id: one.progress.updates for module_id, one in after.modules.items()}
    assert updates["right"] == after.trainer.progress.updates == 600 // 20 * 4
    assert 600 // 20 <= updates["left"] <= 600 // 20 * 2.2


def test_the_learning_rate_of_each_module_follows_its_own_schedule_over_its_own_steps():
    rates = "{left: {optimizer: {lr: 0.5}}, right: {scheduler: {env_steps: 1200}, optimizer: {lr: 0.25}}}"
    experiment = built(compose_modules(modules=f"learner.modules={rates}"))
    for member, env_steps in zip(experiment.modules.values(), (150, 300), strict=True):
        member.progress.env_steps = env_steps
    row = experiment.trainer.learner.row_metrics()
    assert row["left/lr/default"] == pytest.approx(0.5 * (1 - 150 / 600))
    assert row["right/lr/default"] == pytest.approx(0.25 * (1 - 300 / 1200))
    close(experiment)


def test_a_modules_hook_that_is_due_every_so_many_seconds_fires(monkeypatch):
    experiment = built(compose_modules("total_frames=200"))
    trainer, seen = experiment.trainer, []
    monkeypatch.setattr(
        trainer, "_count_seconds", lambda: setattr(trainer.progress, "seconds", trainer.progress.batches)
    )
    for member in experiment.modules.values():
        member.register_op("post_steps", partial(_note_seconds, seen, member), every={"seconds": 2})
    trainer.train()
    close(experiment)
    assert seen == [(module_id, seconds) for seconds in (2, 4, 6, 8) for module_id in ("left", "right")]


def _note_seconds(seen, member):
    seen.append((member.module_id, member.progress.seconds))


def test_modules_that_make_different_numbers_of_updates_are_refused_while_building():
    modules = "learner.modules={left: {}, right: {source: {optim_steps: 3}}}"
    with pytest.raises(ValueError, match=r"modules left and right are updated together: 1 updates .* are not 3"):
        built(compose_modules(modules=modules))


def test_what_a_part_of_a_module_refuses_is_said_with_the_modules_name():
    modules = "learner.modules={left: {}, right: {env: {kwargs: {task: up}}}}"
    with pytest.raises(EnvFault, match=r"module right: env 0, .* env.kwargs.task=up: there are left and right"):
        built(compose_modules(modules=modules))


def test_a_hook_that_comes_and_goes_is_refused_where_there_is_one_agent():
    config = compose_modules(*COMES, modules="learner.modules={}")
    with pytest.raises(ConfigError, match="add_module: this run has one agent"):
        built(config)


@pytest.mark.parametrize("hooks", ["hooks=[count_frames,default]", "hooks=[default,count_frames]"])
def test_at_each_point_hooks_of_modules_come_before_those_of_the_run(hooks):
    experiment = built(compose_modules(hooks))
    for point in POINTS:
        of_modules = [isinstance(one, AtPoint) for one in experiment.trainer.operations(point)]
        assert of_modules == sorted(of_modules, reverse=True)
        assert sum(of_modules) == (point != "optimizer")
    close(experiment)


def test_one_named_module_is_written_as_one_of_many():
    after = trained(compose_modules("total_frames=600", modules=LEFT))
    assert list(after.trainer.state_dict()["learner"]["rl_module"]) == ["left"]
    assert "left/lr/default" in after.trainer.learner.row_metrics()


def test_the_process_wide_generators_are_left_alone_by_who_comes_and_goes():
    plain, moved = trained(compose_modules()), trained(compose_modules(*BOTH))
    assert torch.equal(plain.trainer.state_dict()["streams"]["torch"], moved.trainer.state_dict()["streams"]["torch"])


def test_all_modules_are_in_one_learner_of_the_kind_that_is_wanted():
    after = trained(compose_modules("learner.kind={_target_: tests.whole.modules.CountingLearner, step: 2}"))
    assert after.trainer.learner.counted == 2 * after.trainer.progress.updates > 0
    plain = trained(compose_modules())
    assert differences(learnt(after, "left"), learnt(plain, "left")) == []


def test_a_learner_of_ones_own_says_what_moves_each_module_and_those_that_come_later():
    kind = "learner.kind={_target_: tests.whole.modules.OwnOptimizers, still: right}"
    config = compose_modules(kind, *COMES, "learner.clip=3", "hooks.add_module.overrides.learner.clip=5")
    before, after = built(config), trained(config)
    learner = after.trainer.learner
    assert learner.asked == ["left", "right", "another"]
    assert {module_id: one.clip for module_id, one in learner.given.items()} == {"left": 3, "another": 5}
    moved = {
        module_id: [name for name, _ in learner.get_optimizers_for_module(module_id)] for module_id in learner.asked
    }
    assert moved == {"left": ["own"], "right": [], "another": ["own"]}
    assert isinstance(learner.get_optimizer("another", "own"), torch.optim.SGD)
    assert differences(learnt(before, "left")["networks"], learnt(after, "left")["networks"])
    assert differences(learnt(before, "right")["networks"], learnt(after, "right")["networks"]) == []
    close(before)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "learner.modules={left: {}, right: {learner: {optimizations: {actor: {lr: 1.0}}}}}",
            "^module right: .*no such",
        ),
        (
            "learner.modules={left: {}, right: {learner: {_target_: tests.whole.modules.make_own}}}",
            "^module right: learn",
        ),
        ("learner.kind={_target_: builtins.dict}", r"^learner\.kind: a dict is no"),
    ],
)
def test_what_cannot_be_in_one_learner_is_said_in_one_line_with_the_modules_name(typed, words):
    with pytest.raises((ConfigError, ValueError), match=words) as raised:
        built(compose_modules(typed) if "kind" in typed else compose_modules(modules=typed))
    assert "\n" not in str(raised.value)


def test_all_modules_are_updated_in_the_precision_of_the_run():
    config = compose_modules("learner.precision=fp16", *COMES)
    learner = trained(config).trainer.learner
    scalers = {one.scaler for module in learner.modules.values() for one in module.optimizations}
    assert None not in scalers
    assert len(scalers) == len(learner.modules)
    assert all(learner.row_metrics()[f"{one}/train/loss_scale"] >= 1 for one in learner.modules)


def test_a_module_may_begin_with_the_weights_that_it_had_in_another_run(tmp_path):
    config, folder = compose_modules(), tmp_path / "run"
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    later = built(compose_modules("seed=7", f"learner.restore={{right: {folder}}}"))
    fresh, before = built(compose_modules("seed=7")), trained(config)
    assert differences(learnt(later, "right")["networks"], learnt(before, "right")["networks"]) == []
    assert differences(learnt(later, "left")["networks"], learnt(fresh, "left")["networks"]) == []
    close(later)
    close(fresh)


def test_a_run_of_modules_killed_before_its_first_checkpoint_begins_with_the_same_weights_again(tmp_path):
    assert fork(compose_modules(), tmp_path / "before").wait() == 0
    settings = "seed=7", f"learner.restore={{right: {tmp_path / 'before'}}}", "checkpoint.every.env_steps=700"
    config, whole, killed = compose_modules(*settings), tmp_path / "whole", tmp_path / "killed"
    assert fork(config, whole).wait() == 0
    assert fork(config, killed, lambda: die_at(400)).wait() == -signal.SIGKILL
    assert fork(config, killed).wait() == 0
    assert differences(end_of(config, killed), end_of(config, whole)) == []


def test_the_policy_of_each_module_can_be_exported(tmp_path):
    folder = tmp_path / "run"
    argv = ["env=two_tasks", "total_frames=200", "logger=null", "~hooks.progress_bar", "network.hidden=[8]"]
    assert spawn([*argv, NAMED, "evaluation.final_episodes=1"], folder).wait() == 0
    export_run(folder, tmp_path / "left.pt2", "left")
    act = torch.export.load(tmp_path / "left.pt2").module()
    assert act(torch.zeros(3, 2)).shape == (3,)
    for module_id, words in (("up", "has the modules left, right"), (None, "--module left")):
        with pytest.raises(ConfigError, match=words):
            export_run(folder, tmp_path / "none.pt2", module_id)


def test_a_run_of_several_modules_explains_each_of_them():
    chosen = ("learner.modules_to_train=[left]", "learner.precision=bf16")
    config = compose_modules("learning=[off_policy,reward_normalizer]", *chosen)
    shown = explain_schedule(config, built(config))
    for words in (
        "Learner, compile=trace, precision=bf16",
        "left/default: Adam, lr=0.001, moves 371 numbers\n",
        "right/default: Adam, lr=0.001, moves 371 numbers, but is not trained",
        "left: hookline/TwoTasks-v0 x 1 in this process",
        "right/q: 371 parameters",
        "1,200 frames in 60 batches of 20 env steps",
        "51 updates, after a warm-up of 200 env steps",
        "left: ReplayBufferTrainer.extend, RewardNormalizer.update_reward_stats; right: Replay",
    ):
        assert words in shown


@pytest.mark.slow
def test_both_modules_reach_95_percent_of_what_can_be_reached(record_property):
    experiment = trained(check(parse_arguments(["experiment=two_tasks", "~hooks.progress_bar"])).config)
    found = experiment.evaluation.run("final_evaluation").parts
    for module_id, push in {"left": 0, "right": 2}.items():
        seeds = [experiment.evaluation.parts[module_id].seed_of("final_evaluation", number) for number in range(20)]
        best = sum(all_the_way(module_id, push, seed) for seed in seeds) / len(seeds)
        record_property("note", f"two tasks: {module_id} {found[module_id].returns.mean():.2f} of {best:.2f}")
        assert found[module_id].returns.mean() >= 0.95 * best


def all_the_way(task, push, seed):
    """The return of pushing towards the goal all the time, which is optimal."""
    env, total, is_there = TwoTasks(task), 0.0, False
    env.reset(seed=seed)
    while not is_there:
        _, reward, is_there, _, _ = env.step(push)
        total += reward
    return total


def test_who_goes_before_another_comes_in_one_batch_goes_first_whichever_hook_is_named_first():
    changes = ("hooks=[default,add_module,remove_module]", "hooks.add_module.module_id=right",
               "hooks.add_module.at.env_steps=605", "hooks.remove_module.at.env_steps=601",
               "hooks.remove_module.module_id=right")  # fmt: skip
    after = trained(compose_modules(*changes))
    assert after.trainer.progress.env_steps == 1200
    assert after.modules["right"].progress.env_steps == (1200 - 620) // 2


def one_argument(module_id):
    return True


def test_a_selector_that_cannot_be_asked_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"one_argument is called with \(module_id, batch\)"):
        built(compose_modules("learner.modules_to_train=tests.whole.test_modules.one_argument"))
