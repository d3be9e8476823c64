"""Runs that see pictures: from the environment through the image transforms and convolutions to the replay and back."""

import signal

import numpy as np
import pytest

from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.check import check
from runner.spec import NEXT_OBSERVATION, OBSERVATION
from tests.whole.children import fork
from tests.whole.runs import SHORT, differences, end_of, train

CATCH = (
    "network=q_cnn", "env=gym", "env.id=null", "env.make={_target_: tests.envs.games.Catch}",
    "+env.transforms.resize={_target_: gymnasium.wrappers.ResizeObservation, shape: [12, 12]}",
    "+env.transforms.grayscale={_target_: gymnasium.wrappers.GrayscaleObservation}",
    "+env.transforms.stack={_target_: gymnasium.wrappers.FrameStackObservation, stack_size: 2}",
)  # fmt: skip
LEARN = (
    "tuned=null", "logger=null", "~hooks.progress_bar", "~hooks.recorder", "total_frames=8000", "optimizer.lr=1e-3",
    "collector.frames_per_batch=8", "source.capacity=8000", "source.batch_size=32", "source.optim_steps=2",
    "source.warmup=500", "source.n_step=3", "exploration.start=1", "exploration.end=0.1", "exploration.env_steps=4000",
    "target_updater.rate=0.02", "evaluation.final_episodes=50",
)  # fmt: skip
NO_MLP = [one for one in SHORT if not one.startswith("network.hidden")]


def final_returns(*typed):
    experiment = train(check(parse_arguments([*LEARN, *typed])).config)
    return float(experiment.evaluation.run("final_evaluation").returns.mean())


@pytest.mark.slow
def test_catch_is_learnt_from_pictures_by_three_of_three_seeds(record_property):
    """A policy that does not look catches 1 of 6 balls: -0.67."""
    returns = [final_returns(*CATCH, f"seed={seed}") for seed in range(3)]
    record_property("note", f"catch from pictures: final returns {returns}")
    assert min(returns) >= 0.8


@pytest.fixture(scope="module")
def short():
    sizes = [
        "total_frames=600",
        "source.warmup=100",
        "checkpoint.every.env_steps=100",
        "evaluation.every.env_steps=300",
    ]
    return check(parse_arguments([*NO_MLP, *CATCH, *sizes, "network.normalize_observations=true"])).config


def test_pictures_are_kept_as_bytes_and_each_frame_four_times(short):
    experiment = assemble({**short, "total_frames": 200})
    experiment.trainer.train()
    storage = experiment.source.storage
    for key in (OBSERVATION, NEXT_OBSERVATION):
        assert storage.flat[key].numpy().dtype == np.uint8
    # A stack of 2 in observation and in next observation: every 12 x 12 picture is there 2 x 2 times.
    row = sum(storage.flat[key][0].nbytes for key in (OBSERVATION, NEXT_OBSERVATION))
    assert row == 2 * 2 * 12 * 12
    assert experiment.networks["q"].normalizer.count == 200 * 2 * 12 * 12  # one mean of all pixels


def test_a_run_that_sees_pictures_resumes_bit_for_bit_with_its_statistics(short, tmp_path):
    whole = tmp_path / "whole"
    assert fork(short, whole).wait() == 0
    folder = tmp_path / "killed"
    child = fork(short, folder)
    while not (folder / "ckpt" / "step-300").exists():
        assert not child.has_ended(0.0005), child.output()
    assert child.kill() == -signal.SIGKILL
    again = fork(short, folder)
    assert again.wait() == 0, again.output()
    assert differences(end_of(short, folder), end_of(short, whole)) == []


@pytest.mark.slow
def test_cartpole_is_learnt_from_pictures(record_property):
    """At random: 22 steps."""
    quiet = ["logger=null", "~hooks.progress_bar", "~hooks.recorder", "evaluation.final_episodes=10"]
    config = check(parse_arguments(["env=pixel_cartpole", "network=q_cnn", "seed=0", *quiet])).config
    mean = float(train(config).evaluation.run("final_evaluation").returns.mean())
    record_property("note", f"pixel cartpole after 10,000 env steps: {mean}")
    assert mean >= 40
