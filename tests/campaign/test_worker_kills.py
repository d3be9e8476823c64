"""Runs that collect by processes: parent and workers are killed at any instant, and nothing changes or is left."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.campaign.kill_chains import CAMPAIGN, _compose
from tests.collectors.parts import are_gone, family, shared_segments
from tests.whole.children import fork, has_run, is_done
from tests.whole.runs import differences, end_of

RANDOM_SEED = int(os.environ.get("HOOKLINE_CAMPAIGN_SEED", random.SystemRandom().randrange(10**6)))
BY_WORKERS = (
    "collector=sync", "env.num_envs=4", "collector.frames_per_batch=12", "collector.max_failures=1000",
)  # fmt: skip
OF_PARENT = 0.4
"""So many of the kills hit the run itself, the others one of its workers."""


def config(frames):
    return _compose(*CAMPAIGN, *BY_WORKERS, f"total_frames={frames}")


def end(frames, folder):
    """All that kills must not change; how often workers were begun anew is what they do change."""
    found = end_of(config(frames), folder)
    found["state"]["collector"].pop("failures")
    return found


def workers_of(child):
    """Pids of the workers that there are now: the children of the child's one child."""
    below = family(child.pid)
    return below[1:]


def play(frames, folder, kills, seconds, draw):
    """Kill until there were so many kills, and let the run come to its end; returns what was killed."""
    killed = []
    child = fork(config(frames), folder)
    while len(killed) < kills and not child.has_ended():
        is_parent = draw.random() < OF_PARENT
        while not is_parent and not workers_of(child) and not child.has_ended(0.01):
            pass
        if child.has_ended(draw.uniform(0, seconds * (0.8 if is_parent else 0.2))):
            break
        below = family(child.pid)
        if is_parent:
            child.kill()
            assert are_gone(below), "a worker outlived its run"
            if not is_done(folder):
                child = fork(config(frames), folder)
            killed.append("parent")
        elif below[1:]:
            with suppress(ProcessLookupError):  # the run may just have ended
                victim = draw.choice(below)
                os.kill(victim, signal.SIGKILL)
                killed.append("fork server" if victim == below[0] else "worker")
    assert child.wait() in (0, -signal.SIGKILL), child.output()
    assert is_done(folder), child.output()
    return killed


def campaign(tmp_path, frames, kills, per_run):
    before, draw = shared_segments(), random.Random(RANDOM_SEED)
    started = time.monotonic()
    whole = fork(config(frames), tmp_path / "whole")
    assert whole.wait() == 0, whole.output()
    seconds, expected = time.monotonic() - started, end(frames, tmp_path / "whole")
    killed = []
    while len(killed) < kills:
        folder = tmp_path / f"run-{len(killed)}"
        killed += play(frames, folder, min(per_run, kills - len(killed)), seconds, draw)
        found = differences(end(frames, folder), expected)
        assert found == [], f"HOOKLINE_CAMPAIGN_SEED={RANDOM_SEED}: {found[:5]}"
        assert has_run(folder)
    assert shared_segments() == before
    assert {"worker", "parent"} <= set(killed)
    counts = {what: killed.count(what) for what in set(killed)}
    print(f"\n{counts} killed: all runs bit-identical, no orphan, no shared memory left")


def test_twelve_kills_of_a_run_or_its_workers_change_nothing(tmp_path):
    campaign(tmp_path, frames=1500, kills=12, per_run=6)


@pytest.mark.slow
def test_a_hundred_kills_of_runs_or_their_workers_change_nothing(tmp_path):
    campaign(tmp_path, frames=2400, kills=100, per_run=10)
