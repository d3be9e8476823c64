"""R6: told to stop at any instant, a run saves and exits with 75 in time, and the resumed run is the same run."""

import hashlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import traceback

import pytest

import runner.config.experiment
import runner.evaluation
from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.experiment import run_experiment
from runner.runs import read_run
from tests.campaign.kill_chains import STORAGES, Kind
from tests.campaign.signal_chains import DEADLINE_SECONDS, PREEMPTED, SIGNALS, SignalChain, left_behind, play, table
from tests.whole.children import Child, fork, spawn, take_signals
from tests.whole.runs import SHORT, compose, differences, end_of

RANDOM_SEED = int(os.environ.get("HOOKLINE_CAMPAIGN_SEED", random.SystemRandom().randrange(10**6)))


def run_whole(config, folder):
    started = time.monotonic()
    child = fork(config, folder)
    assert child.wait() == 0, child.output()
    return end_of(config, folder), time.monotonic() - started


def campaign(kinds, signals, per_chain, folder):
    chains, ends = [], {}
    while (left := signals - sum(len(chain.signals) for chain in chains)) > 0:
        kind = kinds[len(chains) % len(kinds)]
        if kind not in ends:
            ends[kind] = run_whole(kind.config(), folder / f"{len(ends)}")
        chain = SignalChain(RANDOM_SEED + len(chains))
        uninterrupted, seconds = ends[kind]
        play(chain, kind.config(), folder / f"chain-{len(chains)}", min(left, per_chain), seconds, uninterrupted)
        chains.append(chain)
    print(f"\n{table(chains)}")
    broken = [str(chain) for chain in chains if chain.problems]
    assert not broken, f"HOOKLINE_CAMPAIGN_SEED={RANDOM_SEED}, folders in {folder}:\n" + "\n".join(broken)


def test_six_signals_change_nothing(tmp_path):
    campaign([Kind("torchsnapshot", STORAGES[-1], 0)], 6, 6, tmp_path)


@pytest.mark.slow
def test_a_hundred_signals_change_nothing(tmp_path):
    backends = ("torchsnapshot", "torch")
    kinds = [Kind(backend, storage, seed) for seed in (0, 1) for backend in backends for storage in STORAGES]
    campaign(kinds, 100, 6, tmp_path)


def wait_until_signals_are_handled(child):
    """Until ``run.py`` has come to its first line; before that, Python itself answers."""
    status = f"/proc/{child.pid}/status"
    while not child.has_ended(0.001):
        with open(status) as file:
            caught = next(line for line in file if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGHUP - 1) & 1:
            return


def stop_while_starting(draw, seconds, folder):
    """Send a signal to ``run.py`` while it imports, checks and builds; returns whether there was a run already."""
    number = draw.choice(SIGNALS)
    child = spawn([*SHORT, "evaluation.final_episodes=1"], folder, is_named=False)
    wait_until_signals_are_handled(child)
    assert not child.has_ended(draw.uniform(0, seconds)), child.output()
    child.send(number)
    sent = time.monotonic()
    assert child.wait(DEADLINE_SECONDS) == PREEMPTED, child.output()
    said = [line for line in child.output().splitlines() if line and not line.startswith(("$", "note: "))]
    runs = list(folder.parent.glob("outputs/*/*/run.json"))
    if not runs:
        assert said == [f"{number.name}: stopped; no run was under way"]
        assert not (folder.parent / "outputs").exists()
    assert "Traceback" not in child.output()
    print(f"{number.name:<9}after {sent - child.since:.2f} s: exit 75 in {time.monotonic() - sent:.2f} s, "
          f"{'a run was under way' if runs else 'nothing left behind'}")  # fmt: skip
    return bool(runs)


def test_a_signal_while_starting_ends_with_75_and_one_line_and_leaves_nothing(tmp_path):
    assert not stop_while_starting(random.Random(RANDOM_SEED), 0.5, tmp_path / "run")


@pytest.mark.slow
def test_twenty_signals_while_starting(tmp_path):
    draw = random.Random(RANDOM_SEED)
    found = [stop_while_starting(draw, 4.0, tmp_path / str(number) / "run") for number in range(20)]
    assert not all(found), "no signal came early enough"


@pytest.mark.parametrize("grace_seconds", [30, 0.5])
def test_a_run_that_hangs_ends_at_the_second_signal_or_when_its_time_is_up(tmp_path, monkeypatch, grace_seconds):
    monkeypatch.setenv("HOOKLINE_GRACE_SECONDS", str(grace_seconds))
    config, folder = compose(), tmp_path / "run"
    hangs = tmp_path / "hangs"

    def hang(*arguments, **options):
        hangs.touch()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, where no Python handler of a signal runs

    child = fork(config, folder, lambda: setattr(runner.evaluation, "play", hang))
    while not hangs.exists():
        assert not child.has_ended(0.001), child.output()
    child.send(signal.SIGTERM)
    if grace_seconds == 30:
        assert not child.has_ended(0.3)
        child.send(signal.SIGTERM)
    assert child.wait(grace_seconds + 2 if grace_seconds < 1 else 2) == PREEMPTED
    if grace_seconds < 1:
        assert "not saved within 0.5 s: the run will go on from the checkpoint before" in child.output()
    uninterrupted, _ = run_whole(config, tmp_path / "whole")
    assert differences(run_whole(config, folder)[0], uninterrupted) == []


def test_a_closed_terminal_stops_the_run_and_not_its_saving(tmp_path):
    config, folder = (
        check(parse_arguments([word for word in SHORT if word != "~hooks.progress_bar"])).config,
        tmp_path / "run",
    )
    folder.mkdir()
    pid, terminal = os.forkpty()
    if pid == 0:
        code = 70
        try:
            take_signals()
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            code = run_experiment(config, folder, algo="dqn", env="cartpole").exit_code
        except BaseException:
            (tmp_path / "error").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    child = Child(pid, folder)
    while not (folder / "ckpt" / "step-500").exists():
        assert not child.has_ended(0.001)
    os.close(terminal)
    assert child.wait(DEADLINE_SECONDS) == PREEMPTED, (tmp_path / "error").read_text()
    assert read_run(folder)["reason"] == "SIGHUP"
    uninterrupted, _ = run_whole(config, tmp_path / "whole")
    assert differences(run_whole(config, folder)[0], uninterrupted) == []


def test_ctrl_c_reaches_the_processes_of_an_environment_too_and_is_left_to_the_run(tmp_path):
    config, folder = compose(), tmp_path / "run"
    workers = []

    def prepare():
        os.setsid()
        assemble = runner.config.experiment.assemble

        def with_worker(*arguments, **options):
            built = assemble(*arguments, **options)
            workers.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)))
            workers[0].start()
            return built

        def end_worker(*arguments):
            (tmp_path / "worker").write_text(f"{workers[0].is_alive()}")
            workers[0].terminate()
            workers[0].join(5)

        runner.config.experiment.assemble = with_worker
        runner.config.experiment._close = end_worker

    child = fork(config, folder, prepare)
    while not (folder / "ckpt" / "step-500").exists():
        assert not child.has_ended(0.001), child.output()
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(DEADLINE_SECONDS) == PREEMPTED
    assert (tmp_path / "worker").read_text() == "True"
    assert left_behind(child, folder) == []


def test_a_run_that_is_done_and_waits_for_its_tracking_server_waits_no_longer(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        child = fork(compose("total_frames=100", "logger=[csv,mlflow]"), tmp_path / "run", os.setsid)
        while not (tmp_path / "run" / "ckpt" / "step-100").exists():
            assert not child.has_ended(0.001), child.output()
        assert not child.has_ended(1.0), child.output()
        child.send(signal.SIGTERM)
        assert child.wait(DEADLINE_SECONDS) == 0, child.output()
    assert read_run(tmp_path / "run")["status"] == "done"
    assert "rows of metrics are not in MLflow yet" in child.output()
    assert left_behind(child, tmp_path / "run") == []
