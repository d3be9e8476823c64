"""R2: killed before or after any system call of a save, a run has the old checkpoint or the new one, never neither."""

import itertools
import os
import random
import shutil
import signal
from collections import Counter
from typing import Any, NamedTuple

import pytest

from runner.spec import CheckpointError
from runner.trainer import Trainer
from tests.campaign import tracer
from tests.campaign.crash_states import Recorder, crash_states
from tests.campaign.kill_chains import STORAGES, Kind
from tests.whole.children import fork, half_written, is_done
from tests.whole.runs import compose, differences, end_of, saves_of, state_of

BACKENDS = ("torchsnapshot", "torch")
OLD, NEW = 600, 640
RANDOM_SEED = int(os.environ.get("HOOKLINE_CAMPAIGN_SEED", random.SystemRandom().randrange(10**6)))
SMALL = ("network.hidden=[4]", "source.capacity=40", f"total_frames={NEW}", "evaluation.final_episodes=1")

pytestmark = pytest.mark.skipif(not tracer.can_trace(), reason="processes may not be traced here")


class Base(NamedTuple):
    """A run that has a checkpoint and is about to make the next, which ends it."""

    config: dict[str, Any]
    folder: Any
    old: dict[str, Any]
    new: dict[str, Any]
    end: dict[str, Any]
    calls: list[str]


def make_base(backend, storage, folder):
    config = compose(*Kind(backend, storage, 0).overrides(), *SMALL)
    preempted = {"_target_": "tests.campaign.parts.Preempted", "at": OLD, "point": "pre_steps_log"}
    child = fork({**config, "hooks": {**config["hooks"], "preempted": preempted}}, folder / "base")
    assert child.wait() == 75, child.output()
    calls = []
    base = Base(config, folder / "base", state_of(folder / "base"), {}, {}, calls)
    code = resume(base, folder / "whole", lambda call: calls.append(call.name) or True)
    assert code == 0
    return base._replace(new=state_of(folder / "whole"), end=how_it_ended(base, folder / "whole"))


def how_it_ended(base, folder):
    return {**end_of(base.config, folder), "saves": saves_of(folder)}


def resume(base, folder, watch, prepare=lambda: None):
    """Go on with a copy of the base, traced from the beginning of its next save; returns how the process ends."""
    if not folder.exists():
        shutil.copytree(base.folder, folder)
    (is_saving, begin), (may_go, go) = os.pipe(), os.pipe()

    def wait_for_tracer():
        save = Trainer.save_trainer

        def traced(*arguments, **options):
            Trainer.save_trainer = save
            os.write(begin, b"!")
            os.read(may_go, 1)
            prepare()
            return save(*arguments, **options)

        Trainer.save_trainer = traced

    child = fork(base.config, folder, wait_for_tracer)
    os.close(begin)
    assert os.read(is_saving, 1) == b"!", child.output()
    code = tracer.trace(child.pid, str(folder), watch, lambda: os.write(go, b"!"))
    for descriptor in (is_saving, may_go, go):
        os.close(descriptor)
    return code


def finish(base, folder):
    """Let the run come to its end, if it has not, and say how it ended."""
    if not is_done(folder):
        child = fork(base.config, folder)
        assert child.wait() == 0, child.output()
    return how_it_ended(base, folder)


def kill_at(base, number, is_after, folder):
    """Kill the run before, or after, its n-th call; returns which checkpoint it has, ``old`` or ``new``."""
    count = itertools.count(1)

    def watch(call):
        return call.is_done != is_after or next(count) != number

    code = resume(base, folder, watch)
    if code != -signal.SIGKILL:  # there were fewer calls this time
        return None
    state = state_of(folder)
    name = {OLD: "old", NEW: "new"}[state["progress"]["env_steps"]]
    assert differences(state, getattr(base, name)) == []
    assert differences(finish(base, folder), base.end) == []
    assert "is not used" not in folder.with_suffix(".txt").read_text()
    assert half_written(folder) == []
    shutil.rmtree(folder)
    return name


def campaign(backend, storage, folder, step=1):
    base = make_base(backend, storage, folder)
    ends = Counter()
    calls = len(base.calls) // 2
    for number in range(1, calls + 1, step):
        for is_after in (False, True) if step == 1 else (bool(number // step % 2),):
            where = f"{'after' if is_after else 'before'} call {number} of {calls}, {base.calls[2 * number - 2]}"
            try:
                ends[kill_at(base, number, is_after, folder / "killed")] += 1
            except AssertionError as error:
                raise AssertionError(f"{backend}, {storage}, killed {where}: {error}") from error
    kinds = ", ".join(f"{count} {name}" for name, count in Counter(base.calls[::2]).most_common())
    print(f"{backend:<14}{storage:<8}{calls:>5} calls ({kinds}): {sum(ends.values())} kills, "
          f"{ends['old']} left the old checkpoint, {ends['new']} the new, 0 neither")  # fmt: skip
    assert ends["old"]
    assert ends["new"]


def power_cuts(backend, storage, folder, count, prepare=lambda: None):
    base = make_base(backend, storage, folder)
    shutil.copytree(base.folder, folder / "traced")
    ends = Counter()
    recorders = []

    def record(call):
        if not recorders:
            recorders.append(Recorder(folder / "traced"))
        return recorders[0](call)

    assert resume(base, folder / "traced", record, prepare) == 0
    for number, (how, tree) in enumerate(crash_states(recorders[0], count, random.Random(RANDOM_SEED))):
        cut = folder / "cut"
        tree.write(cut)
        try:
            state = state_of(cut)
            name = {OLD: "old", NEW: "new"}[state["progress"]["env_steps"]]
            assert differences(state, getattr(base, name)) == []
            assert name == "new" or not is_done(cut), "the run is said to be done, and its last checkpoint is gone"
            if number % 5 == 0:
                assert differences(finish(base, cut), base.end) == []
        except (AssertionError, CheckpointError) as error:
            raise AssertionError(
                f"HOOKLINE_CAMPAIGN_SEED={RANDOM_SEED}, {backend}, {storage}, {how}: {error}"
            ) from error
        ends[name] += 1
        shutil.rmtree(cut)
    print(f"{backend:<14}{storage:<8}{count} power cuts in {len(recorders[0].steps)} steps: "
          f"{ends['old']} left the old checkpoint, {ends['new']} the new, 0 neither")  # fmt: skip


def test_fifty_power_cuts_in_a_save_leave_a_checkpoint(tmp_path):
    power_cuts(BACKENDS[0], STORAGES[-1], tmp_path, 50)


def test_a_save_that_pushes_nothing_to_the_disk_would_be_found_out(tmp_path):
    def skip_syncs():
        os.fsync = os.fdatasync = lambda descriptor: None

    with pytest.raises((AssertionError, ValueError), match=r"HOOKLINE_CAMPAIGN_SEED|run.json is damaged"):
        power_cuts(BACKENDS[0], STORAGES[-1], tmp_path, 100, skip_syncs)


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_five_hundred_power_cuts_in_a_save_leave_a_checkpoint(tmp_path, backend, storage):
    power_cuts(backend, storage, tmp_path, 500)


def test_a_kill_at_every_fifth_call_of_a_save_leaves_a_checkpoint(tmp_path):
    backend, storage = BACKENDS[0], STORAGES[-1]
    campaign(backend, storage, tmp_path, step=5)


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kill_at_any_call_of_a_save_leaves_a_checkpoint(tmp_path, backend, storage):
    campaign(backend, storage, tmp_path)
