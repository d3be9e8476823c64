import re
from functools import partial
from itertools import islice
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from runner.builders import make_evaluation
from runner.envs import single
from runner.seeding import Streams, env_seed
from runner.spec import (
    NEXT_DONE,
    NEXT_EPISODE_LENGTH,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TRUNCATED,
    OBSERVATION,
    EnvFault,
)
from tests.envs.faulty import ALWAYS, faulty
from tests.envs.test_restore import Snapshotted, Unseeded, follow
from tests.toys import Counter, Made, collector, environment, policy

AT = 300
PLACE = r"env 0, episode (\d+) \(seed (\d+)\), step (\d+)"
STEPS = 600
WORDS = {
    "step raises": r"step raised RuntimeError in faulty\.py:\d+: the simulator lost its connection",
    "step exits": r"step raised SystemExit in faulty\.py:\d+: 0",
    "observation NaN": r"the observation is nan at \[2\]",
    "observation inf": r"the observation is -inf at \[1\]",
    "observation too short": r"the observation has the shape \(3,\); its space declares \(4,\)",
    "observation would be broadcast": r"the observation has the shape \(1,\); its space declares \(4,\)",
    "observation of strings": r"the observation has the dtype <U\d+; its space declares float32",
    "observation None": r"the observation has the dtype object; its space declares float32",
    "reward NaN": r"the reward is nan",
    "reward None": r"the reward is None, which is no number",
    "old tuple": r"step must return \(observation, reward, terminated, truncated, info\): not enough values .*got 4\)",
    "reset raises": r"reset raised RuntimeError in faulty\.py:\d+: the simulator lost its connection",
    "reset NaN": r"the observation is nan at \[3\]",
    "reset returns no info": r"reset must return \(observation, info\); it returned an array of the shape \(4,\)",
}
"""What is said of each kind of fault."""


def first_call_of(kind):
    """A call of the collecting, well after the probe, that is due for the fault."""
    return 8 if kind.startswith("reset") else AT


def play(env, steps=STEPS, frames=10):
    one = collector(env, frames, epsilon=0.5)
    return one, [batch.clone() for batch in islice(one, steps // frames)]


def same(ones, others):
    return len(ones) == len(others) and all((one == other).all() for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("kind", WORDS)
def test_a_fault_is_named_in_one_line_with_env_episode_and_step(kind):
    with pytest.raises(EnvFault) as fault:
        play(environment(faulty(kind, first_call_of(kind))))
    line = str(fault.value)
    named = re.fullmatch(rf"{PLACE}: {WORDS[kind]}; mend it .*on_error=restart.*", line)
    assert named, line
    episode, seed, step = map(int, named.groups())
    assert seed == env_seed(0, "env", 0, episode)
    if kind.startswith("reset"):
        assert step == 0
        return
    twin = faulty(kind, ALWAYS)
    env = environment(twin)
    due = AT - twin.func.calls - 1  # the calls of the probe come first
    _, batches = play(env)
    lengths, dones = (torch.cat([batch[key][0] for batch in batches]) for key in (NEXT_EPISODE_LENGTH, NEXT_DONE))
    assert (step, episode) == (lengths[due], dones[:due].sum())


@pytest.mark.parametrize("kind", WORDS)
def test_after_a_passing_fault_the_episode_goes_on_as_if_there_had_been_none(kind, caplog):
    env = environment(faulty(kind, first_call_of(kind)), on_error="restart")
    _, batches = play(env)
    assert same(batches, play(environment("CartPole-v1"))[1])
    assert env.row_metrics() == {"perf/env_restarts": 1, "perf/env_cut_episodes": 0}
    assert len([record for record in caplog.records if "made anew (1 of at most 100 times)" in record.message]) == 1


def test_several_environments_are_told_apart():
    with pytest.raises(EnvFault, match=r"^env 2, "):
        play(environment(faulty("step raises", 20, instance=2), 4), frames=40)
    env = environment(faulty("step raises", 20, instance=2), 4, on_error="restart")
    assert same(play(env, frames=40)[1], play(environment("CartPole-v1", 4), frames=40)[1])


def test_an_episode_that_fails_twice_ends_as_if_by_a_time_limit():
    env = environment(faulty("step raises", AT, times=2), on_error="restart")
    _, batches = play(env, frames=STEPS)
    (batch,) = batches
    (row,) = batch[NEXT_TRUNCATED][0].nonzero().flatten().tolist()
    assert batch[NEXT_OBSERVATION][0, row].tolist() == batch[OBSERVATION][0, row].tolist()
    assert batch[NEXT_REWARD][0, row] == 0
    assert env.row_metrics() == {"perf/env_restarts": 2, "perf/env_cut_episodes": 1}
    assert env.episodes[0] == batch[NEXT_DONE].sum()


def test_a_reset_that_fails_twice_is_given_up_for_the_next_seed():
    env = environment(faulty("reset raises", 8, times=2), on_error="restart")
    play(env)
    clean = environment("CartPole-v1")
    play(clean)
    assert env.row_metrics()["perf/env_restarts"] == 2
    assert env.envs[0].np_random_seed == env_seed(0, "env", 0, env.episodes[0])


def test_more_faults_than_are_allowed_end_the_run():
    env = environment(faulty("step raises", AT, times=ALWAYS), on_error="restart", max_restarts=3)
    with pytest.raises(EnvFault, match=r"step raised .*; and 3 restarts have been made, env\.max_restarts=3") as fault:
        play(env)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(("times", "restarts"), [(1, 1), (3, 3)])
def test_making_it_may_fail_too(times, restarts):
    words = r"^env 0, episode 0, step 0: making it raised OSError in faulty\.py:\d+: no license"
    with pytest.raises(EnvFault, match=words):
        environment(faulty("make raises", 1))
    env = environment(faulty("make raises", 1, times=times), on_error="restart")
    assert env.row_metrics()["perf/env_restarts"] == restarts


def test_a_fault_in_the_trial_at_the_start_is_named():
    with pytest.raises(EnvFault, match=r"^env 0, trial episode \(seed 1\), step 5: step raised"):
        environment(faulty("step raises", 5))
    env = environment(faulty("step raises", 5), on_error="restart")
    assert env.resume_mode == "tape"
    assert same(play(env)[1], play(environment("CartPole-v1"))[1])


def test_after_a_fault_in_the_trial_another_one_is_tried():
    class Stuck(Counter):
        made = 0

        def __init__(self):
            super().__init__(50)
            type(self).made += 1
            self.is_stuck = type(self).made == 1

        def step(self, action):
            if self.is_stuck:
                raise RuntimeError("stuck")
            return super().step(action)

    assert environment(Stuck, on_error="restart", max_restarts=1).guard.restarts == 1


def test_a_tuple_in_the_wrong_order_is_noticed_in_the_trial():
    words = r"^env 0, trial episode \(seed 1\), step 1: truncated is \{\}, neither true nor false; step must return"
    with pytest.raises(EnvFault, match=words):
        environment(faulty("info before truncated", 1, times=ALWAYS))


def test_what_failed_is_closed_and_an_error_of_close_hurts_nobody():
    made = Made(faulty("leaks files", AT, times=5))
    env = environment(made, on_error="restart")
    play(env)
    assert [one.file.closed for one in made.envs] == [True] * 5 + [False]
    env.close()
    assert made.envs[-1].file.closed
    clumsy = environment(faulty("close raises", 1))
    play(clumsy)
    clumsy.close()


@pytest.mark.parametrize("make", [faulty, lambda kind, at: partial(Bursting, at)])
def test_after_a_fault_the_state_is_that_before_the_batch(make):
    env = environment(make("step raises", AT))
    one = collector(env, 50, epsilon=0.5)
    states: list = []
    with pytest.raises(EnvFault):
        states.extend(one.state_dict() for _ in iter(one))
    left = one.state_dict()
    mended = collector(environment(make("step raises", ALWAYS)), 50, epsilon=0.5)
    undisturbed = [batch.clone() for batch in islice(mended, len(states) + 5)]
    other = collector(environment(make("step raises", ALWAYS)), 50, epsilon=0.5)
    other.load_state_dict(left)
    assert left["environment"]["lengths"] == states[-1]["environment"]["lengths"]
    assert same([batch.clone() for batch in islice(other, 5)], undisturbed[-5:])
    assert same([batch.clone() for batch in islice(one, 5)], undisturbed[-5:])  # whoever catches the fault may go on


class Bursting(Snapshotted):
    """Raises once, and can be read out and written back."""

    def __init__(self, at):
        super().__init__(70)
        self.at, self.calls = at, 0

    def step(self, action):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("once")
        return super().step(action)


def test_a_snapshotted_episode_goes_on_after_a_fault():
    failed = SimpleNamespace(once=False)

    class Once(Bursting):
        def step(self, action):
            if self.calls == 150 and not failed.once:
                failed.once = True
                raise RuntimeError("once")
            self.calls += 1
            return super(Bursting, self).step(action)

    env = environment(partial(Once, 0), on_error="restart")
    assert env.resume_mode == "snapshot"
    _, batches = play(env)
    assert env.guard.restarts == 1
    assert same(batches, play(environment(partial(Bursting, ALWAYS)))[1])


def test_an_episode_that_cannot_be_replayed_is_cut_short_at_once():
    class Broken(Unseeded):
        def step(self, action):
            if len(self.actions) == 100:
                self.actions.append(None)
                raise RuntimeError("once")
            return super().step(action)

    env = environment(partial(Broken, 30), on_error="restart")
    assert env.resume_mode == "none"
    _, batches = play(env, 200, 200)
    assert env.row_metrics()["perf/env_cut_episodes"] >= 1
    assert batches[0][NEXT_TRUNCATED].sum() == env.guard.cut_episodes == env.guard.restarts


def test_an_episode_that_does_not_replay_is_cut_short():
    class Drifting(Counter):
        made = 0

        def __init__(self):
            super().__init__(50)
            type(self).made += 1
            self.drift = type(self).made

        def step(self, action):
            if len(self.actions) == 120 and self.drift == 1:
                raise RuntimeError("once")
            return super().step(action)

        def _observation(self):
            return np.array([self.steps, self.drift])

    env = environment(Drifting, on_error="restart")
    _, batches = play(env, 200, 200)
    assert batches[0][NEXT_TRUNCATED].sum() == env.guard.cut_episodes == 1


def test_an_episode_is_brought_back_though_the_environment_fails_meanwhile():
    env = environment("CartPole-v1")
    follow(env, 100)
    assert env.state_dict()["lengths"][0] > 3
    other = environment(made := faulty("step raises", 1000), on_error="restart")
    made.func.calls = 1000 - 3
    other.load_state_dict(env.state_dict())
    assert other.guard.restarts == 1
    assert same_bytes(follow(env, 50, 1), follow(other, 50, 1))


def test_an_episode_that_was_mended_can_be_saved_and_brought_back():
    env = environment(made := faulty("step raises", 1000), on_error="restart")
    made.func.calls = 1000 - 12
    arrays = follow(env, 15)
    assert env.guard.restarts == 1
    assert arrays.episode_length[:, 0].tolist() == list(range(1, 16))
    other = environment("CartPole-v1", on_error="restart")
    other.load_state_dict(env.state_dict())
    assert same_bytes(follow(env, 50, 1), follow(other, 50, 1))


def same_bytes(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def test_restarts_are_counted_over_the_whole_run():
    env = environment(faulty("step raises", AT), on_error="restart")
    play(env)
    other = environment("CartPole-v1", on_error="restart", max_restarts=1)
    other.load_state_dict(env.state_dict())
    assert other.row_metrics() == env.row_metrics()
    with pytest.raises(EnvFault, match="1 restarts have been made"):
        other.guard.allow_restart(EnvFault("again"), None)


def test_an_evaluation_names_its_environment_and_goes_on_after_a_restart():
    def returns(make, **options):
        env = environment(make, **options)
        one = make_evaluation(env, policy(env), Streams(0), {"env_steps": 10}, 3, 3)
        return one.run().returns.tolist(), env.guard

    at = 15
    with pytest.raises(EnvFault, match=r"^evaluation env 1, episode 0 \(seed \d+\), step \d+: the reward is nan"):
        returns(faulty("reward NaN", at, instance=2))
    mended, guard = returns(faulty("reward NaN", at, instance=2), on_error="restart")
    assert mended == returns("CartPole-v1")[0]
    assert guard.restarts == 1


def test_observations_out_of_their_space_are_told_of_once(caplog):
    env = environment(faulty("observation out of space", AT, times=50))
    _, batches = play(env)
    (warning,) = [record.message for record in caplog.records if "outside of its space" in record.message]
    named = re.match(r"env 0, episode (\d+), step (\d+): the observation is 100\.0 at \[0\], outside", warning)
    episode, step = map(int, named.groups())
    flat = [(batch, t) for batch in batches for t in range(10)]
    first = next(i for i, (batch, t) in enumerate(flat) if batch[NEXT_OBSERVATION][0, t, 0] == 100)
    batch, t = flat[first]
    assert step == batch[NEXT_EPISODE_LENGTH][0, t]
    assert episode == sum(bool(batch[NEXT_DONE][0, t]) for batch, t in flat[:first])


@pytest.mark.parametrize("id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_environments_that_keep_within_their_spaces_are_not_accused(id, caplog):
    env = environment(id)
    arrays = follow(env, 600)
    assert env._bounds is None or env._bounds.first_outside(arrays.next_observation) is None
    env.check_bounds(arrays)
    assert "outside" not in caplog.text


def test_an_episode_without_an_end_is_told_of_and_its_tape_let_go(caplog, monkeypatch):
    monkeypatch.setattr(single, "LONG_EPISODE", 100)
    env = environment(partial(Counter, 10**9))
    play(env, 300)
    (warning,) = [record.message for record in caplog.records if "lasted more than 100 steps" in record.message]
    assert "env.max_episode_steps" in warning
    assert "env 0, episode 0" in warning
    state = env.state_dict()
    assert state["within"] == [None]
    other = environment(partial(Counter, 10**9))
    other.load_state_dict(state)
    assert other.observation[0, 0] == 0


def test_a_long_episode_with_snapshots_keeps_a_short_tape(monkeypatch):
    monkeypatch.setattr(single, "LONG_EPISODE", 100)
    env = environment(partial(Snapshotted, 10**9))
    play(env, 1000)
    assert len(env._singles[0].tape) <= 110
    other = environment(partial(Snapshotted, 10**9))
    other.load_state_dict(env.state_dict())
    assert np.array_equal(other.observation, env.observation)


def test_a_fault_draws_nothing_from_the_process_wide_generators():
    class Drawing(Counter):
        """Its making draws, as some do."""

        fails = 1

        def __init__(self):
            super().__init__(50)
            np.random.rand()

        def step(self, action):
            if len(self.actions) == 120 and Drawing.fails:
                Drawing.fails = 0
                raise RuntimeError("once")
            return super().step(action)

    env = environment(Drawing, on_error="restart")
    np.random.seed(3)
    play(env, 200)
    assert env.guard.restarts == 1
    after = np.random.rand()
    np.random.seed(3)
    assert after == np.random.rand()


def test_a_fault_of_the_trial_episode_does_not_speak_of_resuming():
    with pytest.raises(EnvFault, match=r"trial episode.*; mend it, or let") as fault:
        environment(faulty("step raises", 3))
    assert "resume" not in str(fault.value)


def test_of_many_faults_the_first_are_told_in_full_and_then_powers_of_ten(caplog):
    env = environment(faulty("step raises", AT, times=ALWAYS), on_error="restart", max_restarts=25)
    with pytest.raises(EnvFault, match="25 restarts have been made"):
        play(env)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    numbers = [int(found[1]) for message in told if (found := re.search(r"made anew \((\d+) of", message))]
    assert numbers == [1, 2, 3, 10]
    assert ["all of them in run.log" in message for message in told].count(True) <= 2


def cast(dtype, declared=np.float32):
    class Cast(CartPoleEnv):
        def __init__(self):
            super().__init__()
            ends = (end.astype(declared) for end in (self.observation_space.low, self.observation_space.high))
            self.observation_space = gymnasium.spaces.Box(*ends, dtype=declared)

        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            return observation.astype(dtype), info

        def step(self, action):
            observation, *others = super().step(action)
            return observation.astype(dtype), *others

    return Cast


def test_observations_of_another_type_than_is_declared_are_told_of_once(caplog):
    play(environment(cast(np.float64)))
    (told,) = caplog.messages
    assert "the observations are float64, their space declares float32; they are cast to float32" in told
    caplog.clear()
    play(environment(cast(np.float32)))
    play(environment(cast(np.float64, np.float64)))
    assert caplog.messages == []
