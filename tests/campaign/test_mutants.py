"""R15: the comparison of the kill campaign notices every item of the state that a saver could forget."""

import fnmatch
import shutil
from typing import Any, NamedTuple

import pytest

from runner.checkpoint.store import CheckpointStore
from runner.config.assemble import assemble
from runner.runs import RunFolder
from tests.campaign.kill_chains import CAMPAIGN
from tests.campaign.mutants import EQUIVALENT, MUTANTS, leaves, matching, mutated, shown
from tests.whole.children import fork
from tests.whole.runs import compose, differences, end_of, saves_of

FAST = [mutant for mutant in MUTANTS if mutant.scenario == "middle"][::4]

SCENARIOS = {
    "middle": (740, "pre_steps_log", ()),
    # Every evaluation is alike, so that the first is the best, and one that is forgotten is replaced by a later one.
    "ties": (740, "pre_steps_log", ("env.max_episode_steps=7",)),
    # In the batch at whose end it is asked to.
    "asked to end": (900, "post_steps_log", ("hooks.early_stopping.patience=1", "env.max_episode_steps=7")),
    # Before the hook that evaluates is called, for the first time and in a batch at whose end a row is written.
    "evaluating": (910, "pre_steps_log", ("evaluation.every.env_steps=910",)),
    "in files": (740, "pre_steps_log", ("source.storage=memmap",)),
    # Which take 400 env steps each.
    "after an episode": (810, "pre_steps_log", ("env=mountain_car",)),
    "between episodes": (970, "pre_steps_log", ("env=mountain_car",)),
}
"""Where a run is preempted, at which point, and how it differs from those of the kill campaign."""


class Stopped(NamedTuple):
    """A run that was preempted: how it must end when it is resumed, and what to spoil."""

    config: dict[str, Any]
    folder: Any
    state: dict[str, Any]
    manifest: dict[str, Any]
    initial: dict[str, Any]
    end: dict[str, Any]


def stop(scenario, folder):
    """Preempt a run, and see that without a fault it ends like one that was never stopped."""
    at, point, overrides = SCENARIOS[scenario]
    config = compose(*CAMPAIGN, *overrides, "total_frames=1100")
    preempted = {"_target_": "tests.campaign.parts.Preempted", "at": at, "point": point}
    whole = fork(config, folder / "whole")
    child = fork({**config, "hooks": {**config["hooks"], "preempted": preempted}}, folder / "stopped")
    assert (whole.wait(), child.wait()) == (0, 75), whole.output() + child.output()
    state, manifest = CheckpointStore(run=folder / "stopped").load()
    begun = assemble({**config, "logger": {}}, RunFolder.open(folder / "stopped"))
    begun.environment.close()
    stopped = Stopped(config, folder / "stopped", state, manifest, begun.trainer.state_dict(), {})
    end = resume(stopped, state, folder / "control")
    assert differences({**end, "saves": None}, {**end_of(config, folder / "whole"), "saves": None}) == []
    return stopped._replace(end=end)


def resume(stopped, state, folder):
    """How the run ends that is resumed from ``state`` as its newest checkpoint; ``ValueError`` if it is refused."""
    shutil.copytree(stopped.folder, folder)
    CheckpointStore(run=folder).save(state, stopped.manifest["counters"], {**stopped.manifest["extra"], "again": True})
    child = fork(stopped.config, folder)
    try:
        if child.wait() != 0:
            raise ValueError(f"the run ends with exit code {child.end}")
        if "is not used" in child.output():
            raise ValueError("the checkpoint is not used")
        return {**end_of(stopped.config, folder), "saves": saves_of(folder)}
    finally:
        shutil.rmtree(folder)
        folder.with_suffix(".txt").unlink()


def judge(stopped, paths, folder):
    """How a fault at these items shows, for example by the first of the differences; ``None`` where it does not."""
    try:
        end = resume(stopped, mutated(stopped.state, paths, stopped.initial), folder)
    except ValueError as error:
        return str(error)
    found = differences(end, stopped.end)
    return f"{len(found)} differences, {found[0]}" if found else None


@pytest.fixture(scope="module")
def scenario(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = stop(name, tmp_path_factory.mktemp("mutants"))
        return made[name]

    return get


def check(scenario, mutants, folder):
    survivors = []
    for mutant in mutants:
        stopped = scenario(mutant.scenario)
        paths = matching(stopped.state, mutant.pattern)
        assert paths, f"no item of the state is called {mutant.pattern}"
        verdict = judge(stopped, paths, folder / "mutant")
        print(f"{mutant.name:<50} {verdict or 'SURVIVED'}")
        survivors += [] if verdict else [mutant.name]
    print(f"{len(mutants)} savers with a fault, {len(mutants) - len(survivors)} caught")
    assert survivors == []


def test_every_fourth_saver_with_a_fault_is_caught(tmp_path, scenario):
    check(scenario, FAST, tmp_path)


@pytest.mark.slow
def test_every_saver_with_a_fault_is_caught(tmp_path, scenario):
    check(scenario, MUTANTS, tmp_path)


@pytest.mark.slow
def test_no_item_of_the_state_can_be_forgotten_unnoticed(tmp_path, scenario):
    # The list above was written by hand; this one is the state itself, so that nobody has to remember to add to it.
    noticed, unnoticed = set(), set()
    for name in SCENARIOS:
        stopped = scenario(name)
        for path, _ in leaves(stopped.state):
            if shown(path) not in noticed:
                verdict = judge(stopped, [path], tmp_path / "mutant")
                (noticed if verdict else unnoticed).add(shown(path))
    unnoticed -= noticed
    reasons = {path: _reason(path) for path in sorted(unnoticed)}
    print("\n".join(f"{path:<70} {why or 'SURVIVED'}" for path, why in reasons.items()))
    print(f"{len(noticed)} items of the state, forgotten one at a time, were noticed")
    assert [path for path, why in reasons.items() if why is None] == []


def _reason(path):
    return next((why for pattern, why in EQUIVALENT.items() if fnmatch.fnmatchcase(path, pattern)), None)
