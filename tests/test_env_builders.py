"""Each builder does what it documents, and lacks the fault that it is known for elsewhere."""

import math
import pickle
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.check import check
from runner.env_builders import (
    correct_for_frame_skip,
    get_stats_random_rollout,
    parallel_env_constructor,
    transformed_env,
    transformed_env_constructor,
)
from runner.envs.vector import Environment
from runner.spec import ConfigError
from tests.envs.games import Catch, Lives
from tests.envs.test_restore import follow
from tests.toys import Counter


class Constant(Counter):
    """Its second element never changes; its third is far from 0."""

    def __init__(self, value=0.1):
        super().__init__()
        self.value = value
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def _observation(self):
        return np.array([self.steps, self.value, 1000.0 + self.steps])


def wrappers(env):
    return [type(one).__name__ for one in iterate(env)][:-1]


def iterate(env):
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


@pytest.mark.pins("transformed_env_constructor")
def test_a_constructor_takes_no_arguments_and_makes_another_environment_each_time():
    construct = transformed_env_constructor(env_name="CartPole-v1")
    one, other = construct(), construct()
    assert one is not other
    assert wrappers(one)[0] == "TimeLimit"
    assert isinstance(one, gymnasium.Env)


@pytest.mark.pins("transformed_env_constructor")
def test_transforms_of_states_are_in_the_documented_order():
    env = transformed_env(
        custom_env_maker=Lives, noops=2, frame_skip=2, catframes=3, reward_scaling=0.5, reward_loc=1.0,
        max_frames_per_traj=4, stats={"loc": 1.0, "scale": 2.0}, categorical_action_encoding=False,
    )  # fmt: skip
    assert wrappers(env) == [
        "TimeLimit", "OneHotAction", "ScaleReward", "FrameStackObservation", "ShiftedObservation", "NoopReset",
        "FrameSkip",
    ]  # fmt: skip


@pytest.mark.pins("transformed_env_constructor")
def test_transforms_of_pixels_are_in_the_documented_order():
    env = transformed_env(env_name="CartPole-v1", from_pixels=True, catframes=4, center_crop=[200, 300], image_size=20)
    assert wrappers(env)[:6] == [
        "TimeLimit", "FrameStackObservation", "GrayscaleObservation", "ResizeObservation", "CenterCrop",
        "AddRenderObservation",
    ]  # fmt: skip
    assert (env.observation_space.shape, env.observation_space.dtype) == ((4, 20, 20), np.uint8)
    coloured = transformed_env(custom_env_maker=Catch, from_pixels=True, catframes=2, grayscale=False, center_crop=[6])
    assert coloured.observation_space.shape == (2, 84, 84, 3)
    assert "AddRenderObservation" not in wrappers(coloured)  # it shows pictures anyway


def test_rewards_are_scaled_and_then_shifted_and_episodes_cut():
    env = transformed_env(
        custom_env_maker=partial(Counter, 100), reward_scaling=2.0, reward_loc=1.0, max_frames_per_traj=3
    )
    env.reset(seed=0)
    outcomes = [env.step(0) for _ in range(3)]
    assert [one[1] for one in outcomes] == [3, 5, 7]
    assert [one[3] for one in outcomes] == [False, False, True]
    for no_limit in (-1, None):
        assert "TimeLimit" not in wrappers(transformed_env(custom_env_maker=Counter, max_frames_per_traj=no_limit))


def test_without_transforms_only_the_frame_skip_is_left():
    env = transformed_env(custom_env_maker=Lives, frame_skip=2, noops=3, catframes=2, return_transformed_envs=False)
    assert wrappers(env) == ["FrameSkip"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"custom_env": Counter(), "custom_env_maker": Counter}, "either custom_env or custom_env_maker, not both"),
        ({}, "give either an env_name or an environment of your own"),
        ({"env_name": "CartPole-v1", "custom_env_maker": Counter}, "give either an env_name or an environment"),
        ({"env_name": "CartPole-v1", "env_library": "jumanji"}, "there are gym and dm_control"),
        ({"env_name": "CartPole-v1", "env_task": "balance"}, "goes with env_library=dm_control"),
        ({"env_name": "CartPole-v1", "from_pixels": True}, "needs catframes > 0"),
        ({"env_name": "CartPole-v1", "vecnorm": True}, r"^vecnorm=True: .* use network.normalize_observations=true"),
        ({"env_name": "CartPole-v1", "norm_rewards": True}, "^norm_rewards=True: .* a hook among learning"),
        ({"env_name": "CartPole-v1", "max_frames_per_traj": 0}, "-1 for no limit; it is 0"),
        (
            {"env_name": "CartPole-v1", "from_pixels": True, "catframes": 1, "center_crop": [1, 2, 3]},
            r"center_crop is \[height, width\]",
        ),
        ({"env_name": "Pendulum-v1", "noops": 3}, "NoopReset takes the action 0"),
        ({"env_name": "CartPol-v1"}, "cannot make 'CartPol-v1'"),
    ],
)
def test_documented_constraints_are_refused_where_the_constructor_is_made(options, words):
    with pytest.raises(ConfigError, match=words):
        transformed_env_constructor(**options)


@pytest.mark.pins("transformed_env_constructor")
def test_one_environment_cannot_be_handed_out_twice():
    env = Counter()
    construct = transformed_env_constructor(custom_env=env)
    assert construct().unwrapped is env
    with pytest.raises(ConfigError, match="custom_env_maker makes several"):
        construct()


@pytest.mark.pins("parallel_env_constructor")
def test_parallel_environments_are_a_constructor_of_one_or_several_in_step():
    construct = parallel_env_constructor(env_name="CartPole-v1")
    assert isinstance(construct(), gymnasium.Env)
    several = parallel_env_constructor(num_envs=3, env_name="CartPole-v1", catframes=2, frame_skip=2, seed=7)
    assert isinstance(several, Environment)
    assert (several.num_envs, several.spec.observation_shape, several.spec.frame_skip) == (3, (2, 4), 2)
    assert follow(several, 5).observation.shape == (5, 3, 2, 4)
    with pytest.raises(ConfigError, match="custom_env is one environment; 2 need a custom_env_maker"):
        parallel_env_constructor(num_envs=2, custom_env=Counter())


@pytest.mark.pins("parallel_env_constructor", excludes="its own default of batch_transform raised")
def test_transforms_per_environment_which_are_the_default_do_not_raise():
    both = [
        parallel_env_constructor(num_envs=2, batch_transform=batched, env_name="CartPole-v1", catframes=2)
        for batched in (False, True)
    ]
    for one, other in zip(*(follow(env, 30) for env in both), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.pins("get_stats_random_rollout", excludes="the key was used before it was inferred")
def test_statistics_of_a_random_rollout_need_no_key():
    found = get_stats_random_rollout(env_name="CartPole-v1", init_env_steps=500)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"loc": (4,), "scale": (4,)}
    env = gymnasium.make("CartPole-v1")
    same = get_stats_random_rollout(proof_environment=env, key="observation", init_env_steps=500)
    assert all(found[name].equal(same[name]) for name in found)
    env.reset()  # still open
    assert get_stats_random_rollout(env_name="CartPole-v1", seed=1)["loc"].tolist() != found["loc"].tolist()


@pytest.mark.pins("get_stats_random_rollout")
def test_statistics_by_hand():
    # Five steps to an episode: 0 1 2 3 4, twice. Their mean is 2, their variance 2.
    found = get_stats_random_rollout(custom_env_maker=Constant, init_env_steps=10)
    np.testing.assert_allclose(found["loc"], [2, 0, 1002])  # what never changes keeps its value
    np.testing.assert_allclose(found["scale"], [math.sqrt(2), 1, math.sqrt(2)], rtol=1e-6)


def test_all_pixels_have_one_mean_and_one_deviation():
    options = {"custom_env_maker": Catch, "from_pixels": True, "catframes": 2, "image_size": 8}
    found = get_stats_random_rollout(**options, init_env_steps=20)
    assert found["loc"].shape == found["scale"].shape == ()
    assert 0 < found["loc"] < 255
    stats = {name: value.tolist() for name, value in found.items()}
    env = transformed_env(**options, stats=stats)
    assert env.observation_space.dtype == np.float32
    again = get_stats_random_rollout(proof_environment=env, init_env_steps=20)
    assert abs(float(again["loc"].mean())) < 0.5


class Dicts(Counter):
    def __init__(self, *names):
        super().__init__()
        self.observation_space = spaces.Dict({name: spaces.Box(-1, 99, (2,), np.float64) for name in names})

    def _observation(self):
        return {name: np.array([self.steps, number]) for number, name in enumerate(self.observation_space)}


def test_of_several_observations_one_is_chosen_by_its_key():
    two = Dicts("a", "b")
    assert get_stats_random_rollout(proof_environment=two, key="b", init_env_steps=5)["loc"].tolist() == [2, 0]
    assert get_stats_random_rollout(proof_environment=Dicts("a"), init_env_steps=5)["loc"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="there is no key pixels; choose one with key=: a, b"):
        get_stats_random_rollout(proof_environment=two)
    with pytest.raises(ValueError, match="there is no key pixels; the observations are observation"):
        get_stats_random_rollout(proof_environment=Counter(), key="pixels")


@pytest.mark.pins("get_stats_random_rollout")
def test_statistics_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="the statistics of observation are not finite"):
        get_stats_random_rollout(proof_environment=Constant(math.inf))


@pytest.mark.pins("correct_for_frame_skip", excludes="calling it twice divided twice")
def test_counts_of_frames_are_divided_once():
    config = {
        "frame_skip": 4, "total_frames": 1000, "max_frames_per_traj": -1, "record_frames": None,
        "collector": {"frames_per_batch": 200, "init_random_frames": 3}, "noops": 0, "annealing_frames": 10,
    }  # fmt: skip
    once = correct_for_frame_skip(config)
    assert config["annealing_frames"] == 10  # a copy
    assert once == {
        "frame_skip": 4, "total_frames": 1000, "max_frames_per_traj": -1, "record_frames": None,
        "collector": {"frames_per_batch": 50, "init_random_frames": 1}, "noops": 0, "annealing_frames": 2,
        "frame_skip_corrected": 4,
    }  # fmt: skip
    assert correct_for_frame_skip(once) == once
    assert correct_for_frame_skip(pickle.loads(pickle.dumps(once))) == once
    with pytest.raises(ValueError, match="divided by frame_skip=4 before it was changed to 2"):
        correct_for_frame_skip({**once, "frame_skip": 2})
    assert correct_for_frame_skip({"env": {"frame_skip": 2}, "noops": 9})["noops"] == 4
    assert correct_for_frame_skip({"noops": 9})["noops"] == 9


def test_a_run_counts_frames_by_the_frame_skip_which_is_why_total_frames_stays():
    quiet = ["~hooks.progress_bar", "logger=null", "tuned=null", "evaluation.final_episodes=1"]
    sizes = ["total_frames=80", "frame_skip=4", "collector.frames_per_batch=5", "source.batch_size=5"]
    trainer = assemble(check(parse_arguments([*quiet, *sizes])).config).trainer
    trainer.train()
    assert (trainer.progress.frames, trainer.progress.env_steps) == (80, 20)


def test_every_keyword_is_reachable_from_the_command_line():
    typed = ["env.make.catframes=2", "env.make.env_name=Acrobot-v1", "frame_skip=2", "env.make.noops=3", "tuned=null"]
    environment = assemble(check(parse_arguments(["env=transformed", *typed])).config).environment
    assert (environment.spec.observation_shape, environment.spec.frame_skip) == ((2, 6), 2)
    assert environment.resume_mode == "tape"


@pytest.mark.pins("transformed_env_constructor", excludes="a game's own frame skip multiplied ours")
def test_a_game_repeats_actions_as_often_as_is_asked_for():
    env = transformed_env_constructor(env_name="ALE/Pong-v5", frame_skip=4)()
    env.reset(seed=0)
    before = env.unwrapped.ale.getFrameNumber()
    env.step(0)
    assert env.unwrapped.ale.getFrameNumber() - before == 4
