import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from runner.collectors.asynchronous import AsyncCollector
from runner.envs.vector import Environment
from runner.seeding import env_seed
from runner.spec import ACTION, NEXT_DONE, NEXT_OBSERVATION, OBSERVATION, TRAJ_IDS, EnvFault, Progress
from tests.collectors.parts import are_gone, beside, kill, partial_environment, take
from tests.envs.faulty import faulty
from tests.toys import Counter, turn_around


@pytest.fixture
def made():
    kept = []

    def make(**options):
        kept.append(beside(**options))
        return kept[-1]

    yield make
    for collector in kept:
        collector.shutdown()


def by_episode(batches):
    """The rows of each episode in the order in which they came, as ``(observation, next observation, done)``."""
    rows: dict[int, list] = {}
    for batch in batches:
        for ids, *columns in zip(
            batch[TRAJ_IDS], batch[OBSERVATION], batch[NEXT_OBSERVATION], batch[NEXT_DONE], strict=True
        ):
            for number, *row in zip(ids.tolist(), *columns, strict=True):
                rows.setdefault(number, []).append(row)
    return rows


def assert_whole(episodes):
    """Every episode is one chain of steps, nothing missing and nothing twice."""
    for number, rows in episodes.items():
        for (_, reached, done), (begun, _, _) in pairwise(rows):
            assert not done
            assert torch.equal(reached, begun), number


def test_a_batch_is_of_one_worker_and_says_whose_rows_are_whose(made):
    one = made(frames=20)
    found = take(one, 40)
    assert {tuple(batch.shape) for batch in found} == {(2, 10)}
    episodes = by_episode(found)
    assert_whole(episodes)
    assert {number % 4 for number in episodes} == {0, 1, 2, 3}
    ended = sum(int(batch[NEXT_DONE].sum()) for batch in found)
    assert ended == sum(bool(rows[-1][2]) for rows in episodes.values()) > 10


def test_a_template_has_the_keys_of_every_batch(made):
    one = made()
    (batch,) = take(one, 1)
    assert one.batch.shape == batch.shape
    assert set(one.batch.keys(True, True)) == set(batch.keys(True, True))


def test_workers_take_turns_where_they_are_equally_fast(made):
    one = made(frames=20)
    columns = [int(batch[TRAJ_IDS][0, 0]) % 4 // 2 for batch in take(one, 200)]
    assert 60 < sum(columns) < 140


def test_a_worker_does_not_wait_for_a_slow_one(made):
    one = made(env=partial_environment(lambda: Delayed(), 2), frames=5)
    workers = [int(batch[TRAJ_IDS][0, 0]) % 2 for batch in take(one, 200)]
    assert workers.count(0) > 2 * workers.count(1) > 0


class Delayed(Counter):
    """The second environment takes a millisecond a step."""

    def __init__(self):
        super().__init__(length=100_000)
        self.delay = 0.0

    def reset(self, *, seed=None, options=None):
        self.delay = 0.001 if seed == env_seed(0, "env", 1, 0) else 0.0
        return super().reset(seed=seed)

    def step(self, action):
        time.sleep(self.delay)
        return super().step(action)


def test_new_weights_act_in_batches_that_are_begun_later(made):
    one = made(epsilon=0.0, frames=20)
    take(one, 4)
    turn_around(one.policy.network)
    one.update_policy_weights_()
    take(one, 4)  # what was under way
    for batch in take(one, 4):
        assert torch.equal(batch[ACTION], one.policy.network(batch[OBSERVATION]).argmax(-1))


def test_the_lag_of_the_policy_is_counted_in_updates(made):
    one = made(frames=20)
    lags = []
    for batch in one:
        one.progress.count(batch)
        one.progress.updates += 3
        one.update_policy_weights_()
        lags.append(one.row_metrics()["perf/policy_lag_updates"])
        if len(lags) == 30:
            break
    # Each worker has one batch under way: while it is played, the other's batch is learnt from, and its own last one.
    assert lags[0] == 0
    assert all(lag % 3 == 0 for lag in lags)
    assert max(lags) >= 3


def test_a_killed_worker_goes_on_where_its_last_batch_ended(made):
    one = made(frames=20, max_failures=50)
    found = []
    draw = np.random.default_rng(1)
    for number in range(25):
        found += take(one, 4) if number == 0 else more(one, 4)
        worker = one.crew.workers[draw.integers(2)]
        kill(worker)
        assert are_gone([worker.pid])
    found += more(one, 10)
    assert_whole(by_episode(found))
    assert one.progress.env_steps == len(found) * 20
    assert one.row_metrics()["perf/worker_restarts"] == 25


def more(one, number):
    """Further batches of a collector that has begun."""
    copies = []
    for _ in range(number):
        batch = one.collect()
        one.progress.count(batch)
        copies.append(batch.clone())
    return copies


def test_a_saved_state_has_every_episode_as_far_as_it_was_yielded(made):
    one = made(frames=20)
    found = take(one, 30)
    state, progress = one.state_dict(), Progress(env_steps=one.progress.env_steps)
    other = made(frames=20, progress=progress)
    other.load_state_dict(state)
    assert_whole(by_episode([*found, *take(other, 30)]))


def test_a_run_goes_on_after_its_state_was_taken(made):
    one = made(frames=20)
    found = take(one, 5)
    for _ in range(10):
        one.state_dict()
        found += more(one, 3)
    assert_whole(by_episode(found))


def test_a_fault_ends_the_run_and_its_state_can_be_saved(made):
    pair = [faulty("step raises", 200), faulty("none", 1)]
    one = made(env=Environment(pair, 2, "Pair", 1, seed=0), frames=10)
    found = []
    with pytest.raises(EnvFault, match="the simulator lost its connection"):
        found.extend(batch.clone() for batch in one)
    state = one.state_dict()
    assert_goes_on(made(env=partial_environment(faulty("none", 1), 2), frames=10), state, found)
    assert len(take(one, 10)) == 10  # asked again, all workers play on
    assert {int(batch[TRAJ_IDS][0, 0]) % 2 for batch in take(one, 20)} == {0, 1}


def assert_goes_on(other, state, found):
    """A collector with that state plays on from what had been yielded."""
    other.load_state_dict(state)
    before = {number: rows[-1] for number, rows in by_episode(found).items() if not rows[-1][2]}
    after = {number: rows[0] for number, rows in by_episode(take(other, 20)).items()}
    shared = before.keys() & after.keys()
    assert shared == before.keys()
    assert all(torch.equal(before[number][1], after[number][0]) for number in shared)


def test_too_many_deaths_end_the_run_and_its_state_can_be_saved(made):
    one = made(frames=20, max_failures=0)
    found = take(one, 4)
    kill(one.crew.workers[0])
    assert are_gone([one.crew.workers[0].pid])
    with pytest.raises(EnvFault, match=r"collector worker 0 \(env 0 to 1\) was killed by SIGKILL"):
        found.extend(batch.clone() for batch in one)
    assert_goes_on(made(frames=20), one.state_dict(), found)


def test_a_worker_that_dies_before_its_first_batch_takes_nobodys_episodes_with_it(made):
    one = made(frames=20, max_failures=0)
    kill(one.crew.workers[0], signal.SIGSTOP)
    found = take(one, 4)
    assert {int(batch[TRAJ_IDS][0, 0]) % 4 // 2 for batch in found} == {1}
    kill(one.crew.workers[0])
    assert are_gone([one.crew.workers[0].pid])
    with pytest.raises(EnvFault, match="was killed by SIGKILL"):
        found.extend(batch.clone() for batch in one)
    assert_goes_on(made(frames=20), one.state_dict(), found)


def test_workers_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"num_collectors=2 must divide env\.num_envs=5"):
        beside(num_envs=5, frames=30)


def test_nothing_is_left_of_it(made):
    one = made()
    take(one, 3)
    pids = [one.crew._server.pid, *(worker.pid for worker in one.crew.workers)]
    one.shutdown()
    assert are_gone(pids)
    assert isinstance(one, AsyncCollector)


def test_a_worker_that_dies_just_before_a_save_goes_on_as_if_it_had_not(made):
    one = made(frames=20, max_failures=50)
    found = take(one, 5)
    for number in range(10):
        time.sleep(0.02)  # both batches under way are played by now
        worker = one.crew.workers[number % 2]
        kill(worker)
        assert are_gone([worker.pid])
        one.state_dict()
        found += more(one, 4)
    assert_whole(by_episode(found))
    assert one.crew.failures == 10


def test_the_lag_is_not_counted_from_the_beginning_of_a_run_that_was_resumed(made):
    one = made(frames=20)
    take(one, 3)
    other = made(frames=20, progress=Progress(env_steps=60, updates=5000))
    other.load_state_dict(one.state_dict())
    take(other, 4)
    assert other.row_metrics()["perf/policy_lag_updates"] == 0
