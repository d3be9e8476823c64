"""What recorded data teach: at least what the policy could do that recorded them, without an env step."""

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.data.dataset_writer import DatasetWriter
from runner.spec import NEXT_DONE
from tests.whole.runs import train

SEEDS = range(3)
QUIET = ("~hooks.progress_bar", "~hooks.recorder", "logger=[]")
MEDIUM = 8_000
"""Env steps after which a run is stopped that would be done in 50,000."""


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """By seed: the dataset of a run that was stopped early, what its last episodes earned, and its greedy policy."""
    return {seed: record(seed, tmp_path_factory.mktemp("medium") / str(seed)) for seed in SEEDS}


def record(seed, folder):
    experiment = train(check(parse_arguments([*QUIET, f"seed={seed}", f"total_frames={MEDIUM}"])).config)
    storage, spec = experiment.source.storage, experiment.environment.spec
    writer = DatasetWriter(folder, spec, {"num_envs": 1, "skip": 1})
    writer.append({key: field[:MEDIUM].flatten(0, 1) for key, field in storage.fields.items()})
    writer.close()
    last = storage.flat[NEXT_DONE][MEDIUM - 2000 : MEDIUM]  # a reward of 1 each
    greedy = float(experiment.evaluation.run("final_evaluation").returns.mean())
    experiment.trainer.collector.shutdown()
    return folder, 2000 / int(last.sum()), greedy


def learnt(algo, seed, folder):
    experiment = train(check(parse_arguments([*QUIET, f"algo={algo}", f"source.path={folder}", f"seed={seed}"])).config)
    progress = experiment.trainer.progress
    assert (progress.env_steps, progress.frames, progress.episodes) == (0, 0, 0)
    found = float(experiment.evaluation.run("final_evaluation").returns.mean())
    experiment.trainer.collector.shutdown()
    return found


@pytest.mark.slow
def test_conservative_values_reach_the_greedy_policy_that_recorded_with_three_of_three_seeds(medium, record_property):
    for seed, (folder, played, greedy) in medium.items():
        assert 100 <= played <= 250  # medium: chance has 22, a solved one 500
        found = learnt("cql", seed, folder)
        words = f"seed {seed}: data of a policy that earned {played:.0f} ({greedy:.0f} greedily) taught {found:.1f}"
        record_property("note", words)
        assert found >= max(played, greedy)


@pytest.mark.slow
def test_a_clone_does_about_what_the_policies_did_that_recorded(medium, record_property):
    for seed, (folder, played, greedy) in medium.items():
        found = learnt("bc", seed, folder)
        record_property("note", f"seed {seed}: a clone of {played:.0f} ({greedy:.0f} greedily) earns {found:.1f}")
        assert 0.7 * played <= found <= 1.5 * max(played, greedy)
