from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from runner.envs.gym import FrameSkip, describe, make_env
from runner.envs.vector import make_environment
from runner.seeding import Streams
from runner.spec import ConfigError
from tests.toys import Counter, environment


class Spaces(Counter):
    """An environment of given spaces, which samples its observations."""

    def __init__(self, observation=None, action=None):
        super().__init__()
        self.observation_space = observation or self.observation_space
        self.action_space = action or self.action_space

    def _observation(self):
        return self.observation_space.sample()


def made(make=None, id="", frame_skip=1, max_episode_steps=None, **kwargs):
    return make_env(id, kwargs, make, max_episode_steps, frame_skip)


def test_frame_skip_adds_the_rewards_up():
    env = made(Counter, frame_skip=3)
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(1)
    assert (observation[0], reward, terminated, truncated) == (3, 1 + 2 + 3, False, False)
    assert env.unwrapped.actions == [1, 1, 1]


@pytest.mark.parametrize(("end", "expected"), [("terminated", (True, False)), ("truncated", (False, True))])
def test_frame_skip_stops_where_the_episode_ends(end, expected):
    env = made(partial(Counter, 5, end), frame_skip=3)
    env.reset(seed=0)
    env.step(0)
    observation, reward, *ends, _ = env.step(0)  # frames 4 and 5; there is no sixth
    assert (observation[0], reward, tuple(ends)) == (5, 4 + 5, expected)


def test_without_frame_skip_there_is_no_wrapper():
    assert not isinstance(made(Counter), FrameSkip)


def test_float64_observations_are_described_as_float32():
    spec = describe(made(Counter), "Counter", 1)
    assert (spec.observation_shape, spec.observation_dtype, spec.num_actions) == ((2,), np.float32, 3)


def test_integer_observations_keep_their_type():
    spec = describe(Spaces(spaces.Box(0, 255, (4, 4), np.uint8)), "Pixels", 1)
    assert (spec.observation_shape, spec.observation_dtype) == ((4, 4), np.uint8)


def test_discrete_observations_become_one_hot():
    env = made(lambda: Spaces(spaces.Discrete(4)))
    observation, _ = env.reset(seed=0)
    assert sorted(observation.tolist()) == [0, 0, 0, 1]


def test_dict_observations_become_one_vector():
    space = spaces.Dict({"a": spaces.Box(0, 1, (2, 3)), "b": spaces.Discrete(4)})
    env = made(lambda: Spaces(space))
    assert describe(env, "Dict", 1).observation_shape == (2 * 3 + 4,)
    assert env.reset(seed=0)[0].shape == (10,)


def test_vector_actions_have_bounds():
    spec = describe(made(id="Pendulum-v1"), "Pendulum-v1", 1)
    assert (spec.action_shape, spec.action_dtype, spec.num_actions) == ((1,), np.float32, None)
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([-2], [2])


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Discrete(2, start=1)])
def test_other_actions_are_refused_in_one_line(space):
    with pytest.raises(ConfigError) as refusal:
        environment(lambda: Spaces(action=space))
    assert "\n" not in str(refusal.value)
    assert str(space) in str(refusal.value)
    assert "Spaces" in str(refusal.value)


@pytest.mark.parametrize("id", ["NoSuchEnv-v0", "CartPole-v99", "no_such_module:Env-v0"])
def test_an_unknown_id_is_named(id):
    with pytest.raises(ConfigError, match=id) as refusal:
        environment(id)
    assert "\n" not in str(refusal.value)


def test_an_unknown_argument_of_the_environment_is_named():
    with pytest.raises(ConfigError, match="no_such_argument"):
        environment("CartPole-v1", kwargs={"no_such_argument": 1})


def test_arguments_reach_the_environment():
    assert made(id="Pendulum-v1", g=3.5).unwrapped.g == 3.5


def test_an_environment_of_ones_own_gets_a_time_limit():
    env = made(partial(Counter, 100), max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_the_time_limit_of_an_id_can_be_changed():
    env = made(id="CartPole-v1", max_episode_steps=7)
    assert describe(env, "CartPole-v1", 1).max_episode_steps == 7


def test_a_module_in_front_of_the_id_is_imported(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert environment("my_envs:Mine-v0").spec.observation_shape == (4,)
    finally:
        gymnasium.registry.pop("Mine-v0", None)


@pytest.mark.parametrize("given", [{}, {"id": "CartPole-v1", "make": Counter}])
def test_either_an_id_or_a_factory_is_needed(given):
    with pytest.raises(ConfigError, match="either an id or make"):
        make_environment(streams=Streams(0), **given)


def test_a_game_that_repeats_actions_by_itself_is_not_made_to_do_so_again():
    env = make_env("ALE/Pong-v5", {}, None, None, 4)
    env.reset(seed=0)
    before = env.unwrapped.ale.getFrameNumber()
    env.step(0)
    assert env.unwrapped.ale.getFrameNumber() - before == 4
    with pytest.raises(ConfigError, match="an action is repeated 4 times, while frame_skip=1 counts the frames"):
        make_env("ALE/Pong-v5", {}, None, None, 1)
