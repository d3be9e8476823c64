import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from runner.collectors.arrays import Arrays
from runner.envs import watch
from runner.envs.watch import NUMBER, Hung
from runner.runs import RunFolder
from runner.spec import EnvFault
from tests.envs.faulty import ALWAYS, faulty
from tests.toys import Counter, collector, environment

SECONDS = 0.4
AT = 200


BEFORE = set()
"""Threads of watches that tests before the present one have left running."""


@pytest.fixture(autouse=True)
def _own_threads_alone():
    BEFORE.clear()
    BEFORE.update(threading.enumerate())


def threads():
    return [one.name for one in threading.enumerate() if one.name == "env-watch" and one not in BEFORE]


def play(env, batches=40):
    one = collector(env, 10, epsilon=0.5)
    try:
        return [batch.clone() for _, batch in zip(range(batches), one, strict=False)]
    finally:
        one.shutdown()


@pytest.mark.parametrize("kind", ["step sleeps", "step spins", "reset sleeps"])
def test_a_call_that_hangs_is_interrupted_and_named(kind):
    at = 8 if kind == "reset sleeps" else AT
    started = time.monotonic()
    with pytest.raises(EnvFault) as fault:
        play(environment(faulty(kind, at), step_timeout=SECONDS))
    call = kind.split()[0]
    assert f"{call} has not come back within 0.4 s (env.step_timeout), it is in faulty.py:" in str(fault.value)
    assert str(fault.value).startswith("env 0, episode ")
    assert time.monotonic() - started < 10
    env = environment(faulty(kind, at), step_timeout=SECONDS, on_error="restart")
    batches = play(env)
    assert env.guard.restarts >= 1
    assert all((one == other).all() for one, other in zip(batches, play(environment("CartPole-v1")), strict=True))


def test_making_it_may_hang_too():
    class Slow(Counter):
        def __init__(self):
            super().__init__()
            time.sleep(ALWAYS)

    with pytest.raises(EnvFault, match=r"making it has not come back within 0\.4 s .* test_watch\.py:\d+"):
        environment(Slow, step_timeout=SECONDS)
    assert threads() == []


def test_one_slow_call_after_another_is_no_hang(caplog):
    class SlowToMake(Counter):
        failures = 5

        def __init__(self):
            super().__init__()
            time.sleep(SECONDS / 3)
            if SlowToMake.failures:
                SlowToMake.failures -= 1
                raise OSError("no license")

    env = environment(SlowToMake, step_timeout=SECONDS, on_error="restart")
    assert env.guard.restarts == 5
    assert "has not come back" not in caplog.text


def test_there_is_a_thread_only_while_environments_are_in_use():
    before = signal.getsignal(NUMBER)
    env = environment(Counter, step_timeout=SECONDS)
    assert threads() == []
    env.start()
    assert threads() == ["env-watch"]
    env.close()
    assert threads() == []
    assert signal.getsignal(NUMBER) == before
    environment(Counter).start()
    assert threads() == []


def test_outside_of_the_main_thread_there_is_no_deadline():
    found = []

    def use():
        env = environment(Counter, step_timeout=SECONDS)
        env.start()
        found.extend(threads())
        env.close()

    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert found == []


def test_what_is_slow_outside_of_the_environment_does_not_count():
    env = environment(Counter, step_timeout=SECONDS)
    one = collector(env, 10)
    for _, _ in zip(range(2), one, strict=False):
        time.sleep(1.5 * SECONDS)
    one.shutdown()


def test_many_steps_may_take_longer_than_one():
    class Lengthy(Counter):
        def step(self, action):
            time.sleep(SECONDS / 5)
            return super().step(action)

    env = environment(Lengthy, step_timeout=SECONDS)
    env.start()
    one = collector(env, 8)
    one.collect()
    one.shutdown()


def in_child(work, report):
    """The process id of a forked child; ``work`` is done there and its outcome written to ``report``."""
    pid = os.fork()
    if pid == 0:
        output = os.open(report, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(output, 2)
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_c_code_that_never_answers_ends_the_process_and_the_run_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "GRACE_SECONDS", SECONDS)
    run = RunFolder.start(tmp_path, algo="a", env="e", seed=0, config_hash="h")
    env = environment(faulty("step locks up in C", AT), step_timeout=SECONDS, run=run, on_error="restart")
    code = exit_code(in_child(lambda: play(env), tmp_path / "output"))
    line = (tmp_path / "output").read_text().strip()
    assert code == 1
    assert line.startswith("env 0, episode ")
    assert "step has not come back within 0.4 s (env.step_timeout), it is in faulty.py:" in line
    assert line.endswith("and cannot be interrupted: the last checkpoint stays")
    assert "\n" not in line
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("crashed", line)
    assert "_deadlock_in_c" in (tmp_path / "run.log").read_text()


def test_a_process_that_was_suspended_has_not_hung(tmp_path):
    class Laborious(Counter):
        """Needs 0.1 s of the processor for a step, which no suspended process gets."""

        def step(self, action):
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
            return super().step(action)

    def work():
        env.start()
        for _ in range(3):
            env.step([0], arrays, 0)
        env.close()

    env = environment(Laborious, step_timeout=2 * SECONDS)
    arrays = Arrays.allocate(1, 1, env.spec)
    pid = in_child(work, tmp_path / "output")
    time.sleep(0.2)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(3 * SECONDS)
    os.kill(pid, signal.SIGCONT)
    assert exit_code(pid) == 0, (tmp_path / "output").read_text()


def test_a_deadline_that_comes_too_late_interrupts_nothing():
    env = environment(Counter)
    (one,), deadline = env._singles, env.guard.watch
    deadline._late, deadline.inside = (one, *one.call()), one
    with pytest.raises(Hung):
        deadline._interrupt(NUMBER, None)
    deadline.inside = None  # the call came back meanwhile
    deadline._interrupt(NUMBER, None)
    deadline.inside, one.length = one, one.length + 1  # another one has begun
    deadline._interrupt(NUMBER, None)


def test_a_fork_of_a_watched_process_has_a_watch_of_its_own(tmp_path):
    env = environment(faulty("step sleeps", AT), step_timeout=SECONDS, on_error="restart")
    env.start()
    assert threads() == ["env-watch"]
    assert exit_code(in_child(lambda: play(env), tmp_path / "output")) == 0
    env.close()


def test_interrupted_steps_leave_the_state_usable():
    env = environment(faulty("step sleeps", AT), step_timeout=SECONDS)
    one = collector(env, 10, epsilon=0.5)
    with pytest.raises(EnvFault):
        list(one)
    state = one.state_dict()
    other = collector(environment("CartPole-v1"), 10, epsilon=0.5)
    other.load_state_dict(state)
    assert np.array_equal(other.environment.observation, state["environment"]["observation"])
    one.shutdown()
