import logging
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from runner.collectors.crew import Crew
from runner.collectors.in_process import InProcessCollector
from runner.collectors.multi_process import fair_shares
from runner.envs.vector import Environment
from runner.spec import ACTION, NEXT_DONE, NEXT_OBSERVATION, OBSERVATION, EnvFault, HooklineError, Progress
from tests.collectors.parts import are_gone, family, kill, partial_environment, same, shared_segments, take, workers
from tests.envs.faulty import Unreliable, faulty
from tests.envs.test_restore import Snapshotted
from tests.toys import Counter, environment, policy, turn_around


@pytest.fixture
def made():
    """Makes collectors, and ends them."""
    kept = []

    def make(**options):
        kept.append(workers(**options))
        return kept[-1]

    yield make
    for collector in kept:
        collector.shutdown()


def in_process(num_envs=4, frames=40):
    env = environment("CartPole-v1", num_envs)
    return InProcessCollector(env, policy(env, 0.3), frames)


@pytest.mark.parametrize(("collectors", "num_envs", "frames"), [(2, 4, 40), (1, 4, 40), (3, 5, 50), (4, 4, 4)])
def test_workers_play_what_one_process_would(made, collectors, num_envs, frames):
    expected = take(in_process(num_envs, frames), 30)
    assert same(take(made(collectors=collectors, num_envs=num_envs, frames=frames), 30), expected)


@pytest.mark.parametrize(
    ("num_envs", "collectors", "expected"),
    [(4, 2, [(0, 2), (2, 2)]), (5, 2, [(0, 2), (2, 3)]), (7, 3, [(0, 2), (2, 2), (4, 3)])],
)  # fmt: skip
def test_environments_are_divided_fairly(num_envs, collectors, expected):
    assert fair_shares(num_envs, collectors) == expected


def test_more_workers_than_environments_are_refused():
    with pytest.raises(ValueError, match=r"num_collectors=3 leaves workers without .* env\.num_envs=2"):
        workers(num_envs=2, collectors=3)


def test_a_batch_goes_on_where_the_last_one_ended(made):
    first, second = take(made(), 2)
    going_on = ~first[NEXT_DONE][:, -1]
    assert going_on.any()
    assert torch.equal(first[NEXT_OBSERVATION][going_on, -1], second[OBSERVATION][going_on, 0])


def test_workers_act_by_new_weights_only_once_they_were_sent(made):
    one = made(epsilon=0.0)
    take(one, 1)
    old = policy(environment("CartPole-v1")).network
    turn_around(one.policy.network)
    for network in (old, one.policy.network):
        (batch,) = take(one, 1)
        assert torch.equal(batch[ACTION], network(batch[OBSERVATION]).argmax(-1))
        one.update_policy_weights_()


def test_a_killed_worker_changes_nothing(made, caplog):
    expected, one = take(in_process(), 60), made()
    found = take(one, 20)
    kill(one.crew.workers[1])
    found += take(one, 20)
    for worker in one.crew.workers:
        kill(worker)
    assert same(found + take(one, 20), expected)
    assert one.row_metrics() == {"perf/worker_restarts": 3}
    assert (
        "collector worker 1 (env 2 to 3) was killed by SIGKILL; it is begun anew (1 of at most 10 times)" in caplog.text
    )


def test_fifty_kills_at_any_instant_change_nothing_and_miscount_nothing(made):
    expected, one = take(in_process(), 400), made(max_failures=50)
    draw, found, kills = np.random.default_rng(0), [], 0
    playing = iter(one)
    for number in range(400):
        if number % 8 == 3:
            kill(one.crew.workers[draw.integers(2)])
            kills += 1
        batch = next(playing)
        one.progress.count(batch)
        found.append(batch.clone())
    assert (kills, one.crew.failures) == (50, 50)
    assert same(found, expected)
    assert one.progress.env_steps == 400 * 40
    assert one.progress.episodes == sum(int(batch[NEXT_DONE].sum()) for batch in expected)


def test_a_worker_killed_in_the_middle_of_a_batch_plays_it_again(made):
    slow = partial_environment(lambda: Slow(), 2)
    one = made(env=slow, frames=40)
    playing = iter(one)
    before = next(playing).clone()
    worker = one.crew.workers[0]
    worker.ask("play", 0)  # a batch takes a tenth of a second
    time.sleep(0.03)
    kill(worker)
    assert are_gone([worker.pid])
    after = next(playing)
    assert torch.equal(before[NEXT_OBSERVATION][:, -1], after[OBSERVATION][:, 0])
    assert one.crew.failures == 1


class Slow(Counter):
    def __init__(self):
        super().__init__(length=1000)

    def step(self, action):
        time.sleep(0.005)
        return super().step(action)


def test_a_run_ends_with_the_state_before_the_batch_when_too_many_workers_have_died(made):
    expected, one = take(in_process(), 30), made(max_failures=1)
    take(one, 10)
    for worker in one.crew.workers:
        kill(worker)
    with pytest.raises(
        EnvFault, match=r"collector worker 1 .* was killed by SIGKILL; collector.max_failures=1 are behind"
    ):
        take(one, 1)
    other = made()
    other.progress = Progress(env_steps=400)
    other.load_state_dict(one.state_dict())
    assert same(take(other, 20), expected[10:])


def test_a_fault_of_an_environment_is_named_and_all_workers_are_as_before_the_batch(made):
    def pair(second):
        return Environment([faulty("none", 1), second], 2, "Pair", 1, seed=0)

    one = made(env=pair(faulty("step raises", 300)), frames=20)
    with pytest.raises(EnvFault, match=r"^env 1, episode \d+ .*, step \d+: .*the simulator lost its connection"):
        take(one, 100)
    batches = one.progress.batches
    assert 10 < batches < 60
    env = pair(faulty("none", 1))
    sound = InProcessCollector(env, policy(env, 0.3), 20)
    take(sound, batches)
    found, expected = one.state_dict()["environment"], sound.state_dict()["environment"]
    for name in ("episodes", "lengths", "returns"):
        assert found[name] == expected[name]
    assert np.array_equal(found["observation"], expected["observation"])


def test_an_error_in_a_worker_is_shown_with_its_traceback_and_its_number(made, caplog):
    one = made()
    one.crew.workers[1].ask("play", 7)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(HooklineError, match=r"collector worker 1 \(env 2 to 3\) failed: IndexError"),
    ):
        one.crew.workers[1].answer()
    assert "Traceback (most recent call last)" in caplog.text
    assert "in play" in caplog.text


def test_an_environment_that_cannot_be_made_in_a_worker_says_why():
    env = partial_environment(faulty("make raises", 1, instance=1), 2)
    with pytest.raises(EnvFault, match="env 0"):
        workers(env=env, frames=20)


@pytest.mark.parametrize("collectors", [1, 2, 4])
def test_a_loaded_state_goes_on_bit_for_bit_in_any_number_of_processes(made, collectors):
    one = made()
    take(one, 20)
    state, progress = one.state_dict(), Progress(env_steps=one.progress.env_steps)
    expected = take(one, 20)
    other = made(collectors=collectors, progress=progress)
    other.load_state_dict(state)
    assert same(take(other, 20), expected)


def test_a_run_goes_on_in_processes_that_began_without_and_back(made):
    one, two = in_process(), made()
    expected = take(in_process(), 30)
    found = take(one, 10)
    two.load_state_dict(one.state_dict())
    two.progress.env_steps = one.progress.env_steps
    found += take(two, 10)
    three = in_process()
    three.load_state_dict(two.state_dict())
    three.progress.env_steps = two.progress.env_steps
    assert same(found + take(three, 10), expected)


def test_weights_that_were_not_sent_before_a_save_are_not_sent_by_it(made):
    one = made(epsilon=0.0)
    take(one, 1)
    turn_around(one.policy.network)
    other = made(epsilon=0.0)
    turn_around(other.policy.network)
    other.load_state_dict(one.state_dict())
    assert same(take(other, 5), take(one, 5))


def test_an_episode_that_does_not_repeat_itself_restarts_and_says_so(made, caplog):
    env = partial_environment(lambda: Unrepeatable(), 2)
    one = made(env=env, frames=20)
    take(one, 2)
    kill(one.crew.workers[0])
    (batch,) = take(one, 1)
    assert batch.shape == (2, 10)
    assert "its episodes restart" in caplog.text


class Unrepeatable(Counter):
    made = 0

    def __init__(self):
        super().__init__(length=50)
        self.number = int.from_bytes(os.urandom(3))

    def _observation(self):
        return np.array([self.steps, float(self.number)])


def test_signals_are_left_to_the_run(made):
    expected, one = take(in_process(), 20), made()
    found = take(one, 10)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        for pid in (one.crew._server.pid, *(worker.pid for worker in one.crew.workers)):
            os.kill(pid, number)
    assert same(found + take(one, 10), expected)
    assert one.crew.failures == 0


def test_shutdown_may_be_called_twice_and_leaves_nothing_behind(made):
    before, others = shared_segments(), set(family(os.getpid()))  # torch's compiler keeps processes, if it was asked
    one = made()
    take(one, 2)
    pids = [one.crew._server.pid, *(worker.pid for worker in one.crew.workers)]
    one.shutdown()
    one.shutdown()
    assert are_gone(pids)
    assert set(family(os.getpid())) <= others
    assert shared_segments() == before


def test_shutdown_does_not_wait_for_an_environment_that_hangs(monkeypatch):
    monkeypatch.setattr("runner.collectors.processes.CLOSE_SECONDS", 0.3)
    one = workers(env=partial_environment(lambda: Hanging(), 2), frames=20)
    for worker in one.crew.workers:
        worker.ask("play", 0)
    pids, started = [worker.pid for worker in one.crew.workers], time.monotonic()
    one.shutdown()
    assert time.monotonic() - started < 3.0
    assert are_gone(pids, 0.0)


class Hanging(Counter):
    def __init__(self):
        super().__init__(length=1000)

    def step(self, action):
        if self.steps > 30:  # the trial episode is over by then
            time.sleep(1000)
        return super().step(action)


@pytest.mark.parametrize("is_hanging", [False, True])
def test_no_process_outlives_a_run_that_is_killed(is_hanging):
    before = shared_segments()
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kind = Hanging if is_hanging else Counter
            one = workers(env=partial_environment(lambda: kind(), 2), frames=40 * 2)
            for worker in one.crew.workers:
                worker.ask("play", 0)
            os.write(sending, " ".join(map(str, family(os.getpid()))).encode())
            time.sleep(1000)
        finally:
            os._exit(1)
    pids = list(map(int, os.read(receiving, 1000).split()))
    assert len(pids) == 3
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert are_gone(pids)
    assert shared_segments() == before


def test_a_fork_server_that_is_killed_changes_nothing(made, caplog):
    expected, one = take(in_process(), 40), made()
    found = take(one, 10)
    for _ in range(2):
        os.kill(one.crew._server.pid, signal.SIGKILL)
        assert are_gone([worker.pid for worker in one.crew.workers])
        found += take(one, 10)
    os.kill(one.crew._server.pid, signal.SIGKILL)
    assert are_gone([worker.pid for worker in one.crew.workers])
    state = one.state_dict()
    one.load_state_dict(state)
    assert same(found + take(one, 10), expected)
    assert one.crew.failures == 6
    assert "the process that forks the collector's workers is gone; there is another one now" in caplog.text


def test_a_worker_that_dies_just_before_a_save_or_a_load_changes_nothing(made):
    expected, one = take(in_process(), 40), made()
    found = take(one, 20)
    kill(one.crew.workers[0])
    assert are_gone([one.crew.workers[0].pid])
    state = one.state_dict()
    kill(one.crew.workers[1])
    assert are_gone([one.crew.workers[1].pid])
    one.load_state_dict(state)
    assert same(found + take(one, 20), expected)


def test_a_simulator_that_crashes_each_time_ends_the_run_and_is_named(made, caplog):
    env = partial_environment(lambda: Crashing(), 2)
    one = made(env=env, frames=20, max_failures=2)
    with pytest.raises(
        EnvFault, match=r"collector worker [01] \(env [01]\) was killed by SIGSEGV; collector.max_failures=2"
    ):
        take(one, 20)
    assert one.progress.env_steps == 60
    assert one.state_dict()["environment"]["lengths"] == [30, 30]


class Crashing(Counter):
    """Does what a broken simulator does at the 35th step of an episode; the trial one is shorter."""

    def __init__(self):
        super().__init__(length=100)

    def step(self, action):
        if self.steps == 34:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().step(action)


def test_environments_with_snapshots_are_brought_back_by_them(made):
    def env():
        return partial_environment(lambda: Snapshotted(), 2)

    assert env().resume_mode == "snapshot"
    whole, killed = made(env=env(), frames=20), made(env=env(), frames=20)
    expected = take(whole, 20)
    found = take(killed, 7)
    state = killed.state_dict()
    found += take(killed, 3)
    kill(killed.crew.workers[0])
    found += take(killed, 10)
    assert same(found, expected)
    other = made(env=env(), frames=20, progress=Progress(env_steps=140))
    other.load_state_dict(state)
    assert same(take(other, 13), expected[7:])


def test_environments_that_fail_by_chance_are_made_anew_by_their_workers_and_counted(made):
    env = partial_environment(lambda: Unreliable(5, step=0.01, reset=0.01), 4, on_error="restart", max_restarts=1000)
    one = made(env=env)
    found = take(one, 100)
    assert sum(batch.numel() for batch in found) == 4000
    counts = [worker.counts["perf/env_restarts"] for worker in one.crew.workers]
    assert min(counts) > 3
    trial = env.guard.row_metrics().get("perf/env_restarts", 0)
    assert one.row_metrics()["perf/env_restarts"] == sum(counts) + trial


def test_a_state_is_exact_although_the_last_death_allowed_came_while_it_was_taken(made):
    expected, one = take(in_process(), 30), made(max_failures=0)
    take(one, 10)
    kill(one.crew.workers[1])
    assert are_gone([one.crew.workers[1].pid])
    other = made(progress=Progress(env_steps=400))
    other.load_state_dict(one.state_dict())
    assert same(take(other, 20), expected[10:])


def test_a_run_that_has_ended_for_a_worker_leaves_the_others_alone(made):
    one = made(max_failures=0)
    take(one, 3)
    pids = [worker.pid for worker in one.crew.workers]
    kill(one.crew.workers[0])
    for _ in range(3):
        with pytest.raises(EnvFault, match=r"collector worker 0 \(env 0 to 1\)"):
            take(one, 1)
    assert not are_gone(pids[1:], 0.1)


def test_a_worker_that_dies_for_good_while_its_log_is_shortened_costs_no_batch(made, monkeypatch):
    monkeypatch.setattr("runner.collectors.crew.LONGEST_LOG", 10)
    expected, one = take(in_process(), 30), made(max_failures=0)
    found = take(one, 5)
    kill(one.crew.workers[0])
    assert are_gone([one.crew.workers[0].pid])
    with pytest.raises(EnvFault):
        take(one, 1)
    other = made(progress=Progress(env_steps=200))
    other.load_state_dict(one.state_dict())
    assert same(found + take(other, 25), expected)


def test_restarts_of_environments_are_counted_on_by_those_who_counted_them(made):
    def env(rate):
        return partial_environment(lambda: Unreliable(5, rate, reset=0.0), 4, on_error="restart", max_restarts=100)

    one = made(env=env(0.02))
    take(one, 30)
    state, other = one.state_dict(), made(env=env(0.0))
    other.load_state_dict(state)
    counted = [worker.call("state")["guard"] for worker in one.crew.workers]
    assert min(guard["restarts"] for guard in counted) > 3
    assert [worker.call("state")["guard"] for worker in other.crew.workers] == counted
    alone = partial_environment(lambda: Unreliable(5, step=0.0, reset=0.0), 4, on_error="restart", max_restarts=1000)
    alone.load_state_dict(state["environment"])
    assert alone.guard.restarts == sum(guard["restarts"] for guard in counted) + one.environment.guard.restarts


def test_workers_are_made_in_the_main_thread_only():
    said = []

    def build():
        try:
            workers()
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert "make their collector in the main thread" in said[0]


def test_a_worker_that_dies_before_it_was_asked_for_anything_is_begun_anew(made, monkeypatch):
    begin = Crew.begin

    def kill_first(crew):
        os.kill(crew._server.pid, signal.SIGKILL)
        assert are_gone([worker.pid for worker in crew.workers])
        begin(crew)

    monkeypatch.setattr(Crew, "begin", kill_first)
    assert same(take(made(), 5), take(in_process(), 5))
