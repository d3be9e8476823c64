"""Runs that learn from recorded data alone: what they count in, what they show, and that a kill changes nothing."""

import random
import shutil
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runner.config.assemble import assemble
from runner.config.experiment import explain
from runner.config.origins import Origins
from runner.config.summary import learns_nothing
from runner.config.unplayed import unplayed_problems
from runner.data.dataset import Dataset, DatasetWriter
from runner.spec import OBSERVATION, ConfigError
from tests.config.conftest import ask  # noqa: F401
from tests.whole.children import fork, half_written
from tests.whole.runs import compose, compose_offline, differences, end_of, train, weights

ALGORITHMS = ("cql", "bc")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of a run that recorded itself, its steps of two environments."""
    folder = tmp_path_factory.mktemp("data") / "run"
    config = compose("env.num_envs=2", "hooks=[default,record_tensordict]", "total_frames=1500")
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return folder


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    return whole(compose_offline(data), tmp_path_factory.mktemp("uninterrupted") / "run")


def whole(config, folder):
    """Begin a run, or go on with one, to its end."""
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return end_of(config, folder)


def test_nothing_is_played_and_all_is_counted_in_updates(data, uninterrupted, tmp_path):
    progress = uninterrupted["record"]["progress"]
    assert (progress["env_steps"], progress["frames"], progress["episodes"]) == (0, 0, 0)
    assert progress["updates"] == 900
    rows = uninterrupted["rows"]
    assert [row["updates"] for row in rows] == [*map(str, range(70, 900, 70)), "900"]
    evaluated = [int(row["updates"]) for row in rows if row["eval/return_mean"]]
    assert evaluated == [350, 630, 900]  # the first rows after updates 300, 600 and 900
    assert uninterrupted["record"]["reason"] == "stop_after.updates"
    child = fork(compose_offline(data, "checkpoint.every.updates=400"), tmp_path / "run")
    assert child.wait() == 0
    assert sorted(path.name for path in (tmp_path / "run/ckpt").iterdir()) == ["step-800", "step-900"]
    assert "900 updates in" in child.output()
    assert "env steps" not in child.output()
    assert "stop_after.updates=1800" in child.output()


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_emptied_of_hooks_it_ends_with_the_same_bits_and_another_seed_differs(data, algo):
    config = compose_offline(data, f"algo={algo}")
    one, emptied = weights(train(config)), weights(train({**config, "hooks": {}}))
    assert differences(one, emptied) == []
    assert differences(one, weights(train({**config, "seed": 1}))) != []


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_recorded_updates_are_those_of_autograd_to_the_bit(data, algo):
    settings = f"algo={algo}", "stop_after.updates=50", "source.n_step=2"
    one, other = (train(compose_offline(data, *settings, f"compile={compile}")) for compile in ("none", "trace"))
    assert differences(weights(one), weights(other)) == []
    (recorders,) = other.trainer.learner._recorders.values()
    assert len(recorders[0]._programs) == 1


def test_hooks_that_look_at_collected_batches_take_empty_ones(data):
    every_hook = "hooks=[default,log_scalar,log_timing,early_stopping,count_frames,clear_cuda_cache,record_tensordict]"
    experiment = train(compose_offline(data, every_hook, "hooks.log_reward.every.updates=1", "stop_after.updates=30"))
    assert experiment.trainer.progress.batches == 30


def test_loggers_and_videos_go_by_updates(data, tmp_path):
    video = ("hooks=[default,record_video]", "hooks.record_video.every.updates=20", "stop_after.updates=40")
    child = fork(compose_offline(data, *video, "logger=[csv,tensorboard]", "log_every.updates=10"), tmp_path / "run")
    assert child.wait() == 0, child.output()
    assert sorted(path.name for path in (tmp_path / "run/videos").iterdir()) == ["greedy-20.mp4", "greedy-40.mp4"]
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/q")] == [10, 20, 30, 40]


def test_no_training_environment_is_stepped_or_even_begun(data, monkeypatch):
    experiment = assemble({**compose_offline(data, "env.num_envs=3"), "hooks": {}})
    assert len(experiment.environment.envs) == 1  # that of the spec
    monkeypatch.setattr(type(experiment.environment), "step", None)
    monkeypatch.setattr(type(experiment.environment), "start", None)
    experiment.trainer.train()
    experiment.environment.close()


@pytest.mark.parametrize("place", ["", "dataset", "ckpt"])
def test_a_run_is_learnt_from_by_what_it_recorded_or_by_its_replay_buffer(data, place):
    experiment = assemble(compose_offline(data / place))
    experiment.environment.close()
    recorded = Dataset(data / "dataset").tensor(OBSERVATION)
    expected = recorded[-1000:] if place == "ckpt" else recorded  # the replay has room for so many
    found = experiment.source.dataset.tensor(OBSERVATION)
    assert sorted(found.tolist()) == sorted(expected.tolist())


def test_the_learning_rate_falls_over_updates(data):
    experiment, rates = assemble(compose_offline(data, "scheduler=linear", "optimizer.lr=1e-3")), []
    learner = experiment.trainer.learner
    experiment.trainer.register_op("post_optim", lambda: rates.append(learner.row_metrics()["lr/default"]))
    experiment.trainer.train()
    experiment.environment.close()
    assert rates[0] == pytest.approx(1e-3 * (1 - 1 / 900))
    assert rates[449] == pytest.approx(0.5e-3)
    assert rates[-1] == pytest.approx(0.0)


def test_statistics_of_observations_are_those_of_the_data(data):
    experiment = train(compose_offline(data, "network.normalize_observations=true", "stop_after.updates=5"))
    normalizer = experiment.networks["q"].normalizer
    observations = Dataset(data / "dataset").tensor(OBSERVATION).double()
    assert int(normalizer.count) == 1500
    torch.testing.assert_close(normalizer.mean, observations.mean(0))
    torch.testing.assert_close(normalizer.squares / 1500, observations.var(0, correction=0))


def test_recorded_and_played_data_are_mixed_and_only_the_played_ones_grow(data):
    recorded = {"_target_": "runner.builders.make_offline_source", "path": str(data), "n_step": 3}
    config = compose(*"source=mixture source.warmup=100 total_frames=600 source.sources.newest.capacity=100".split())
    source = {**config["source"], "fractions": {"all": 0.5, "newest": 0.25, "old": 0.25}}
    source["sources"] = {**source["sources"], "old": recorded}
    experiment = train({**config, "source": source})
    assert len(experiment.source.sources["all"].storage) == 600
    assert len(experiment.source.sources["old"].dataset) == 1500
    assert experiment.trainer.progress.frames == 600


def test_what_a_run_would_do_is_said_in_updates(data):
    text = explain(compose_offline(data))
    assert "CartPole-v1 for evaluation alone" in text
    assert "900 updates, each by 32 transitions" in text
    assert f"data: 1,500 transitions of {data / 'dataset'}" in text
    assert "frames" not in text


def test_nobody_is_warned_of_a_run_that_learns_nothing(data):
    config = compose_offline(data)
    experiment = assemble(config)
    assert learns_nothing(config, experiment) is None
    experiment.environment.close()


def test_rewards_cannot_be_normalized_by_those_that_are_collected(data):
    with pytest.raises(ConfigError, match=r"reward_normalizer: .* none are played"):
        assemble(compose_offline(data, "learning=[off_policy,reward_normalizer]"))


def test_a_run_killed_between_saves_resumes_bit_for_bit(data, uninterrupted, tmp_path):
    config, folder = compose_offline(data), tmp_path / "run"
    child = fork(config, folder)
    while not (folder / "ckpt" / "step-300").exists():
        assert not child.has_ended(0.0005), child.output()
    assert child.kill() == -signal.SIGKILL
    assert differences(whole(config, folder), uninterrupted) == []


def test_a_run_does_not_go_on_with_other_data(data, tmp_path):
    changed, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data / "dataset", changed)
    assert fork(compose_offline(changed, "stop_after.updates=200"), folder).wait() == 0
    shutil.rmtree(changed)
    shutil.copytree(data, changed)
    shutil.rmtree(changed / "dataset")  # leaves the replay buffer, which has other rows
    child = fork(compose_offline(changed, "stop_after.updates=300"), folder)
    assert child.wait() == 3
    assert "is not the one it has learnt from" in child.output()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torchsnapshot", "torch"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_twelve_kills_change_nothing(data, tmp_path, backend, algo):
    config = compose_offline(
        data, f"algo={algo}", f"checkpoint.backend={backend}", "source.n_step=2", "checkpoint.every.updates=40"
    )
    end, folder, draw, kills = whole(config, tmp_path / "whole"), tmp_path / "run", random.Random(algo), 0
    while kills < 12:
        child = fork(config, folder)
        waits_for_save = draw.random() < 0.5
        ended = child.has_ended(draw.uniform(0.05, 0.5))
        while waits_for_save and not ended and not half_written(folder):
            ended = child.has_ended(0.0003)
        assert not ended, f"done after {kills} kills: {child.output()}"
        child.kill()
        kills += 1
    assert differences(whole(config, folder), end) == []


MISTAKES = {
    "no path": (["algo=cql"], "source.path (conf/source/offline.yaml", "missing"),
    "path that is not there": (["algo=bc", "source.path=none"], "source.path=none", "there is no such folder"),
    "folder without data": (["algo=cql", "source.path=."], "dataset", "there is no dataset.json in it"),
    "replay that stays empty": (["algo=cql", "source=replay"], "source (", "source=offline source.path=<a dataset>"),
    "frames": (["algo=bc", "source.path=.", "total_frames=9"], "total_frames=9", "stop_after.updates=100000"),
    "no end": (["algo=cql", "source.path=.", "~stop_after.updates"], "stop_after.updates", "missing"),
    "interval": (["algo=cql", "source.path=.", "log_every.env_steps=9"], "log_every.env_steps", "log_every.updates=9"),
    "warm-up": (["algo=cql", "source.path=.", "+source.warmup=9"], "source.warmup", "there is no such parameter"),
    "no updates": (["algo=cql", "source.path=.", "source.optim_steps=0"], "source.optim_steps", "expected a whole"),
    "played and recorded": (["source=offline", "source.path=."], "source (", "would never be learnt from"),
    "no frames": (["total_frames=null"], "total_frames = null", "expected a whole number > 0"),
    "alpha": (["algo=cql", "source.path=.", "loss.alpha=-1"], "loss.alpha", "expected a number >= 0"),
}  # fmt: skip


@pytest.mark.parametrize(("typed", "where", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_starts_nothing(ask, typed, where, words):  # noqa: F811
    answer = ask("logger=[]", *typed)
    assert answer.code == 2
    (line,) = [line for line in answer.err.splitlines() if not line.startswith(("one mistake", "note:"))]
    assert where in line
    assert words in line


def test_a_mixture_that_would_wait_for_env_steps_is_refused(data):
    part = {"_target_": "runner.builders.make_offline_source", "path": str(data), "n_step": 1}
    source = {"_target_": "runner.builders.make_mixture", "sources": {"a": part, "b": part}, "warmup": 9}
    source |= {"fractions": {"a": 0.5, "b": 0.5}, "optim_steps": 0}
    config = {**compose_offline(data), "source": source}
    lines = [str(problem) for problem in unplayed_problems(config, Origins())]
    assert len(lines) == 2
    assert "source.warmup=9" in lines[0]
    assert "never ends" in lines[0]
    assert "source.optim_steps=0" in lines[1]
    fine = {**config, "source": {**source, "warmup": 0, "optim_steps": 1}}
    assert list(unplayed_problems(fine, Origins())) == []
    assert train({**fine, "stop_after": {"updates": 20}}).trainer.progress.updates == 20


def test_a_finished_run_says_what_lets_it_go_on_and_goes_on(data, ask):  # noqa: F811
    few = ["network.hidden=[8]", "logger=csv", "evaluation.final_episodes=1", "~hooks.progress_bar", "tuned=null"]
    run = ["algo=cql", f"source.path={data}", "stop_after.updates=40", "hydra.run.dir=run", *few]
    assert "stop_after.updates=80" in ask(*run).out
    answer = ask("resume=run")
    assert answer.code == 2
    assert "this run is done; stop_after.updates=<more than 40> lets it go on" in answer.err
    answer = ask("resume=run", "stop_after.updates=60")
    assert answer.code == 0
    assert "going on from update 40 in run" in answer.out
    assert "60 updates in" in answer.out


def test_data_of_another_environment_are_refused_in_one_line(data, ask):  # noqa: F811
    answer = ask("algo=cql", f"source.path={data}", "env=acrobot", "logger=[]")
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert "it was recorded in CartPole-v1 with observation_shape = [4]; Acrobot-v1 has [6]" in line


def test_data_without_rows_are_refused_in_one_line(data, ask):  # noqa: F811
    experiment = assemble(compose_offline(data))
    experiment.environment.close()
    writer = DatasetWriter("empty", experiment.environment.spec, {"num_envs": 1})
    writer.append({key: column[:0] for key, column in experiment.source.dataset[:1].items()})
    writer.close()
    answer = ask("algo=cql", "source.path=empty", "logger=[]")
    assert answer.code == 2
    (line,) = answer.err.splitlines()
    assert "dataset empty: it has no rows, so there is nothing to learn from" in line
