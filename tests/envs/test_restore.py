import logging
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from runner.checkpoint.store import CheckpointStore
from runner.collectors.arrays import Arrays
from tests.toys import Counter, environment


class Walk(Counter):
    """A random walk in the environment's own generator, whose state can be read and written."""

    def reset(self, *, seed=None, options=None):
        self.position = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.position += float(self.np_random.normal()) + action
        return super().step(action)

    def _observation(self):
        return np.array([self.steps, self.position])


class Snapshotted(Walk):
    def get_state(self):
        return {"steps": self.steps, "position": self.position, "generator": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.steps, self.position = state["steps"], state["position"]
        self.np_random.bit_generator.state = state["generator"]


class Forgetful(Snapshotted):
    """Its state functions leave out the generator."""

    def set_state(self, state):
        self.steps, self.position = state["steps"], state["position"]


class Unseeded(Walk):
    def step(self, action):
        self.position += np.random.default_rng().normal()
        return super().step(action)


class Changing(Walk):
    """Repeats itself while ``drift`` stays as it is."""

    drift = 0.0

    def step(self, action):
        self.position += self.drift
        return super().step(action)


class Narrow(Walk):
    """Takes actions in [2, 3] and nothing else."""

    def __init__(self):
        super().__init__(50)
        self.action_space = spaces.Box(2, 3, (1,), np.float32)

    def step(self, action):
        assert self.action_space.contains(np.asarray(action))
        return super().step(float(action[0]))


def follow(env, steps, seed=0):
    """Take ``steps`` random steps in every environment; everything that can be seen of them."""
    generator, space = np.random.default_rng(seed), env.envs[0].action_space
    arrays = Arrays.allocate(steps, env.num_envs, env.spec)
    env.start()
    for t in range(steps):
        if isinstance(space, spaces.Discrete):
            actions = generator.integers(space.n, size=env.num_envs).tolist()
        else:
            actions = list(generator.uniform(space.low, space.high, (env.num_envs, *space.shape)).astype(np.float32))
        arrays.observation[t] = env.observation
        env.step(actions, arrays, t)
    return arrays


def saved_and_loaded(state, path, backend):
    store = CheckpointStore(path, backend=backend)
    store.save({"env": state}, {"env_steps": 0})
    return store.load()[0]["env"]


def assert_goes_on_alike(make, before=37, steps=200, through=lambda state: state):
    env, other = environment(make, 2), environment(make, 2)
    follow(env, before)
    other.load_state_dict(through(env.state_dict()))
    assert np.array_equal(env.observation, other.observation)
    for one, two in zip(follow(env, steps, 1), follow(other, steps, 1), strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("id", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"])
def test_classic_control_goes_on_bit_for_bit_from_a_tape(id):
    assert environment(id).resume_mode == "tape"
    assert_goes_on_alike(id)


def test_an_environment_with_state_functions_goes_on_from_a_snapshot():
    limited = partial(gymnasium.wrappers.TimeLimit, max_episode_steps=60)
    assert environment(lambda: limited(Snapshotted(1000))).resume_mode == "snapshot"
    assert_goes_on_alike(lambda: limited(Snapshotted(1000)))


def test_a_snapshot_holds_the_count_of_the_time_limit():
    env, other = (environment(partial(Snapshotted, 1000), max_episode_steps=10) for _ in range(2))
    follow(env, 7)
    other.load_state_dict(env.state_dict())
    assert follow(other, 5).truncated[:, 0].tolist() == [False, False, True, False, False]


def test_a_snapshot_is_not_a_replay():
    env, other = (environment(partial(Snapshotted, 1000)) for _ in range(2))
    follow(env, 50)
    taken = len(other.envs[0].unwrapped.actions)
    other.load_state_dict(env.state_dict())
    assert len(other.envs[0].unwrapped.actions) == taken


def test_state_functions_that_forget_something_are_not_believed():
    assert environment(partial(Forgetful, 50)).resume_mode == "tape"
    assert_goes_on_alike(partial(Forgetful, 50))


def test_frame_skip_and_a_time_limit_are_brought_back_by_the_tape():
    assert_goes_on_alike(lambda: gymnasium.wrappers.TimeLimit(Walk(1000), 23))
    env, other = (environment("CartPole-v1", frame_skip=3) for _ in range(2))
    follow(env, 5)
    other.load_state_dict(env.state_dict())
    assert np.array_equal(env.observation, other.observation)


@pytest.mark.parametrize("backend", ["torchsnapshot", "torch"])
@pytest.mark.parametrize("make", ["Pendulum-v1", partial(Walk, 50), partial(Snapshotted, 50)])
def test_the_state_survives_a_checkpoint(make, backend, tmp_path):
    assert_goes_on_alike(make, steps=60, through=lambda state: saved_and_loaded(state, tmp_path, backend))


def test_an_environment_that_does_not_repeat_itself_restarts_its_episode(caplog):
    env, other = (environment(partial(Unseeded, 20)) for _ in range(2))
    assert env.resume_mode == "none"
    assert "restarts its episodes" in caplog.text
    follow(env, 33)  # in the second episode, at its step 13
    other.load_state_dict(env.state_dict())
    assert other.episodes == [1]
    assert other.observation[0, 0] == 0
    assert follow(other, 1).episode_length[0, 0] == 1


def test_a_tape_that_leads_elsewhere_restarts_the_episode_with_a_warning(caplog, monkeypatch):
    env, other = (environment(partial(Changing, 20)) for _ in range(2))
    follow(env, 3)
    monkeypatch.setattr(Changing, "drift", 1.0)
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(env.state_dict())
    assert "did not replay" in caplog.text
    assert other.observation[0, 0] == 0
    assert follow(other, 1).episode_length[0, 0] == 1


def test_an_environment_that_fails_while_it_is_brought_back_restarts_with_a_warning(caplog):
    env, other = (environment(partial(Walk, 20)) for _ in range(2))
    follow(env, 3)
    state = env.state_dict()
    state["within"][0] = np.array([0, 0, "no number"], object)
    other.load_state_dict(state)
    assert "could not be brought back" in caplog.text
    assert follow(other, 1).episode_length[0, 0] == 1


def test_a_tape_is_only_as_long_as_the_running_episode():
    env = environment(partial(Walk, 10))
    follow(env, 34)
    assert [len(tape) for tape in env.state_dict()["within"]] == [4]


def test_an_environment_that_goes_on_can_be_saved_again():
    env, other, third = (environment("CartPole-v1") for _ in range(3))
    follow(env, 5)
    other.load_state_dict(env.state_dict())
    follow(other, 3, 1)
    third.load_state_dict(other.state_dict())
    assert follow(other, 20, 2).next_observation.tobytes() == follow(third, 20, 2).next_observation.tobytes()


def test_what_has_not_started_is_not_started_by_loading():
    env, other = environment(Counter), environment(Counter)
    follow(other, 3)
    other.load_state_dict(env.state_dict())
    assert follow(other, 1).observation[0, 0, 0] == 0


def test_the_probe_stays_within_the_bounds_of_actions():
    assert environment(Narrow).resume_mode == "tape"


class Opaque(Snapshotted):
    """Hands out its state as an object that no checkpoint can hold."""

    def get_state(self):
        return {"inner": object(), "state": super().get_state()}

    def set_state(self, state):
        super().set_state(state["state"])


def test_a_snapshot_that_no_checkpoint_can_hold_is_not_used():
    assert environment(Opaque).resume_mode == "tape"
