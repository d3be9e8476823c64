"""Each call that a save, a load or a run makes to its disk fails once, or from then on: what was saved is not lost.

pytest -m slow -s tests/campaign/test_disk_errors.py        # all of it, as tables
"""

import ctypes
import errno
import os
import shutil
import tempfile
from itertools import islice
from pathlib import Path

import pytest

from runner.checkpoint.store import CheckpointStore
from tests.campaign.damaged_runs import MEMORY, in_child, make_scene
from tests.campaign.disk_errors import Fault, Switch, watch, why_not
from tests.campaign.failing_disks import (
    FaultTable,
    exit_as_run_py_does,
    faults_in,
    finish,
    prepared,
    run_loads,
    run_saves,
    save_all,
    states_like,
    try_load,
    try_run,
    try_save,
    wrong_with_run,
)
from tests.whole.runs import compose, differences, end_of

BACKENDS = ("torch", "torchsnapshot")
STORAGES = ("tensor", "memmap")
SHORT_RUN = (
    "total_frames=300", "source.warmup=100", "source.capacity=200", "network.hidden=[8,8]", "log_every.env_steps=50",
    "checkpoint.every.env_steps=100", "checkpoint.backend=torch", "evaluation.every.env_steps=200",
)  # fmt: skip
CHANGING = ("create", "write", "sync", "rename", "make folder", "remove", "close")


@pytest.fixture(scope="module", autouse=True)
def _system_calls_can_fail():
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def place():
    folder = Path(tempfile.mkdtemp(prefix="hookline-disk-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def states(place):
    """The state of a real run, made four."""
    scene = make_scene(place / "scene", "checkpoint.backend=torch")
    return states_like(CheckpointStore(scene.folder).load()[0])


@pytest.fixture(scope="module")
def template_of(place, states):
    """Makes a folder with two checkpoints, once for each backend."""

    def make(backend):
        folder = place / f"template-{backend}"
        if not folder.exists():
            save_all(folder, states, backend)
        return folder

    return make


@pytest.fixture(scope="module", params=STORAGES)
def run_without_faults(place, request):
    """The whole run, how it ends, and the calls it makes."""
    config, folder = compose(*SHORT_RUN, f"source.storage={request.param}"), place / f"whole-{request.param}"
    watched = try_run(config, folder, None)
    assert watched.ended.code == 0, watched.ended.output
    return config, finish_of(config, folder), watched.calls


def finish_of(config, folder):
    ended = in_child(lambda: end_of(config, folder))
    assert ended.code == 0, ended.output
    return ended.result


def fresh(place, name):
    """A folder of that name that is not there yet."""
    shutil.rmtree(place / name, ignore_errors=True)
    return place / name


def assert_nothing_wrong(table: FaultTable) -> None:
    print(f"\n{table}\n")
    assert not table.wrong, "\n".join(table.wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_save_that_finds_the_disk_full_at_any_fifth_call_keeps_the_one_before(place, states, template_of, backend):
    template = template_of(backend)
    calls = try_save(prepared(template, place), states, backend, False, None).calls
    full = (fault for fault in faults_in(calls) if fault.error == errno.ENOSPC and not fault.lasts)
    table = run_saves(template, place, states, backend, False, islice(full, 0, None, 5))
    assert_nothing_wrong(table)
    assert table.count("error told") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in background"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_save_in_which_any_call_fails_keeps_the_one_before(place, states, template_of, backend, in_background):
    template = template_of(backend)
    calls = try_save(prepared(template, place), states, backend, in_background, None).calls
    if in_background:  # reported otherwise, but done by the same calls: reading has been tried
        calls = {kind: calls[kind] for kind in CHANGING}
    table = run_saves(template, place, states, backend, in_background, faults_in(calls))
    assert_nothing_wrong(table)
    assert table.count("error told") > 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_load_in_which_a_read_fails_falls_back(place, states, template_of, backend):
    template = template_of(backend)
    calls = try_load(prepared(template, place), backend, None).calls
    faults = (fault for fault in faults_in({"read": calls["read"]}))
    table = run_loads(template, place, states, backend, islice(faults, 0, None, 5))
    assert_nothing_wrong(table)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_load_in_which_any_call_fails_falls_back_or_says_why_not(place, states, template_of, backend):
    template = template_of(backend)
    calls = try_load(prepared(template, place), backend, None).calls
    table = run_loads(template, place, states, backend, faults_in(calls))
    assert_nothing_wrong(table)
    assert table.count("got over it") > 10


def test_a_run_goes_on_where_one_save_finds_the_disk_full_and_the_next_save_succeeds(place, run_without_faults):
    config, whole, _ = run_without_faults
    folder = fresh(place, "one-failed")

    def work(switch: Switch):
        save = CheckpointStore.save_in_background

        def save_on_a_full_disk(store, state, counters, extra=None):
            if counters["env_steps"] != 100:
                return save(store, state, counters, extra)
            with switch.on():
                save(store, state, counters, extra)
                return store.finish()

        CheckpointStore.save_in_background = save_on_a_full_disk
        folder.mkdir()
        exit_as_run_py_does(config, folder)

    watched = watch(work, folder, Fault("write", 1, errno.ENOSPC, lasts=True))
    assert (watched.ended.code, watched.failed != []) == (0, True), watched.ended.output
    warnings = [line for line in watched.ended.output.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "no checkpoint could be written" in warnings[0]
    assert "No space left on device" in warnings[0]
    assert differences(finish_of(config, folder), whole) == []


def test_a_run_whose_last_save_fails_exits_3_in_one_line_and_goes_on_from_the_save_before(place, run_without_faults):
    config, whole, _ = run_without_faults
    folder = fresh(place, "last-failed")

    def work(switch: Switch):
        save = CheckpointStore.save

        def save_on_a_full_disk(store, *arguments):
            with switch.on():
                return save(store, *arguments)

        CheckpointStore.save = save_on_a_full_disk
        folder.mkdir()
        exit_as_run_py_does(config, folder)

    watched = watch(work, folder, Fault("create", 1, errno.ENOSPC, lasts=True))
    assert watched.ended.code == 3, watched.ended.output
    line, go_on = watched.ended.output.splitlines()
    assert go_on.startswith("go on  ")
    assert "No space left on device" in line
    gone_on = finish(config, folder)
    assert (gone_on.code, differences(gone_on.result, whole)) == (0, []), gone_on.output


@pytest.mark.slow
def test_a_run_in_whose_folder_any_call_fails_is_the_same_run_when_it_has_gone_on(place, run_without_faults):
    config, whole, calls = run_without_faults
    table = FaultTable(f"whole runs, storage={config['source']['storage']}")
    faults = [fault for fault in faults_in({kind: calls[kind] for kind in CHANGING}) if fault.error != errno.EDQUOT]
    for number, fault in enumerate(faults[::3]):
        folder = place / f"run-{number}"
        watched = try_run(config, folder, fault)
        verdict = {0: "done", 1: "exit 1", 2: "exit 2", 3: "exit 3"}.get(watched.ended.code, "other")
        table.add(fault, verdict if watched.failed else "not reached", wrong_with_run(watched, config, folder, whole))
        shutil.rmtree(folder)
    assert_nothing_wrong(table)


def test_a_run_on_a_disk_that_is_really_full_ends_in_one_line_and_goes_on_when_there_is_space(
    place, run_without_faults
):
    config, whole, _ = run_without_faults
    mount = fresh(place, "disk")
    mount.mkdir()
    ended = in_child(lambda: _fill_and_free(config, mount, whole), seconds=120)
    if ended.code == 77:
        pytest.skip(f"no file system can be mounted here: {ended.output}")
    assert ended.code == 0, ended.output
    first, gone_on, different = ended.result
    assert first.code in (1, 3), first
    said = [line for line in first.output.splitlines() if not line.startswith(("warning: ", "go on "))]
    assert len(said) == 1, first.output
    assert "No space left on device" in first.output
    assert (gone_on.code, different) == (0, []), gone_on.output


def _fill_and_free(config, mount, whole):
    """A run on a disk of 100 KB, and again when it has more."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_user, new_mounts, is_private = (0 if os.geteuid() == 0 else 0x10000000), 0x20000, 0x44000
    arguments = (b"tmpfs", str(mount).encode(), b"tmpfs")
    failed = (
        libc.unshare(new_user | new_mounts)
        or libc.mount(b"none", b"/", None, is_private, None)
        or libc.mount(*arguments, 0, b"size=100k")
    )
    if failed:
        print(os.strerror(ctypes.get_errno()))
        raise SystemExit(77)
    folder = mount / "run"

    def run():
        folder.mkdir()
        exit_as_run_py_does(config, folder)

    first = in_child(run)
    assert libc.mount(*arguments, 0x20, b"size=16m") == 0  # mounted again, larger
    gone_on = finish(config, folder)
    return first, gone_on, differences(gone_on.result, whole)
