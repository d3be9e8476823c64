"""Wrappers of ours and of gymnasium around one environment: what they show, and that a tape brings them back."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers as theirs

from runner.envs.gym import make_env
from runner.envs.transforms import (
    CenterCrop,
    FireReset,
    FrameSkip,
    LifeLoss,
    NoopReset,
    OneHotAction,
    PixelRenderTransform,
    ScaleReward,
    ShiftedObservation,
)
from runner.envs.vector import make_environment
from runner.seeding import Streams
from runner.spec import ConfigError
from tests.envs.games import Catch, Flicker, Lives
from tests.envs.test_restore import Snapshotted, follow
from tests.toys import Counter, environment

STACK = partial(theirs.FrameStackObservation, stack_size=3)


def made(make, times=1, **transforms):
    return make_env("", {}, make, None, times, transforms)


def steps(env, actions, seed=0):
    """First pixels, rewards and ends from a seeded reset on."""
    first = env.reset(seed=seed)[0]
    taken = [env.step(action) for action in actions]
    return [first, *(one[0] for one in taken)], [one[1] for one in taken], [one[2] for one in taken]


def test_the_larger_of_two_frames_shows_what_is_drawn_in_every_other_one():
    seen, rewards, ends = steps(made(Flicker, 3, frame_skip=partial(FrameSkip, skip=3, max_pool=True)), [0, 0])
    # Frames 1-3: of 2 and 3 the larger is (200, 3). Frames 4-6: (0, 5) and (200, 6).
    assert [one[0].tolist() for one in seen[1:]] == [[200, 3], [200, 6]]
    assert (rewards, ends) == ([3, 3], [False, True])


def test_an_episode_that_ends_within_a_repetition_ends_on_its_last_frames():
    pooled = partial(FrameSkip, skip=4, max_pool=True)
    seen, _, ends = steps(made(partial(Flicker, 5), 4, frame_skip=pooled), [0, 0])
    assert seen[2][0].tolist() == [0, 5]  # the fifth alone; gymnasium's own would show (200, 5) out of frames 3 and 4
    assert ends == [False, True]
    gymnasiums = theirs.MaxAndSkipObservation(Flicker(5), 4)
    assert steps(gymnasiums, [0, 0])[0][2][0].tolist() == [200, 4]


def test_the_number_of_no_ops_follows_from_the_seed_alone():
    def lengths(env, seeds):
        return [(env.reset(seed=seed), env.unwrapped.steps)[1] for seed in seeds]

    seeds = list(range(200))
    one = lengths(NoopReset(Lives(1, 100), 5), seeds)
    assert set(one) == {1, 2, 3, 4, 5}
    assert lengths(NoopReset(Lives(1, 100), 5), seeds[::-1])[::-1] == one
    assert lengths(NoopReset(Lives(1, 100), 0), [0]) == [0]


def test_no_ops_that_end_the_episode_go_on_in_the_next_one_and_cannot_go_on_for_ever():
    env = NoopReset(Lives(1, 2), 5)  # each game lasts 2 steps
    counts = {(env.reset(seed=seed), env.unwrapped.steps)[1] for seed in range(50)}
    assert counts == {0, 1}
    with pytest.raises(RuntimeError, match="every episode ends within"):
        NoopReset(Lives(1, 1), 10_000).reset(seed=0)


def test_fire_is_pressed_where_a_game_begins_and_where_a_life_does():
    env = FireReset(LifeLoss(Lives()))
    _, _, ends = steps(env, [2, 2, 2])  # fire was the first of the four steps of a life
    assert ends == [False, False, True]
    env.reset()
    assert env.unwrapped.actions == [1, 2, 2, 2, 0, 1]  # the next life: the no-op, then fire


def test_fire_is_pressed_for_each_life_of_a_whole_game_and_its_reward_counts():
    env = FireReset(Lives())
    seen, rewards, ends = steps(env, [2] * 9)
    assert env.unwrapped.actions == [1, 2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2]
    assert (rewards[2], rewards[5], ends[-1]) == (4 + 5, 8 + 9, True)
    assert seen[3][0, 0] == 5


def test_a_game_without_fire_is_left_alone_where_that_was_asked_for():
    env = FireReset(Counter(), if_any=True)
    env.reset(seed=0)
    assert env.unwrapped.actions == []
    with pytest.raises(ValueError, match="needs the action FIRE; action 2"):
        FireReset(Lives(), action=2)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (partial(NoopReset, action=2), "action 2 of the environment is RIGHT"),
        (partial(FireReset, action=7), "takes the action 7"),
        (partial(CenterCrop, height=3, width=2), "3 x 2 is larger than the image"),
    ],
)
def test_a_wrapper_that_does_not_fit_is_one_line_with_its_name(wrap, words):
    with pytest.raises(ConfigError, match=f"^env.transforms.mine: ValueError: .*{words}"):
        made(Lives, mine=wrap)


def test_wrappers_of_gymnasium_that_do_not_fit_are_one_line_as_well():
    with pytest.raises(ConfigError, match=r"^env.transforms.small: ValueError: ResizeObservation requires"):
        made(Counter, small=partial(theirs.ResizeObservation, shape=(4, 4)))
    with pytest.raises(ConfigError, match=r"^env.transforms.x: expected a node with a _target_, got 3"):
        made(Counter, x=3)
    with pytest.raises(ConfigError, match=r"^env.transforms.x: expected a wrapper, its target returned a list"):
        made(Counter, x=lambda env: [env])
    with pytest.raises(ConfigError, match="needs an environment with lives; Counter has none"):
        made(Counter, x=LifeLoss)


@pytest.mark.parametrize(
    ("wrap", "instead"),
    [
        (theirs.NormalizeObservation, "network.normalize_observations=true"),
        (theirs.NormalizeReward, "a hook among learning"),
        (theirs.MaxAndSkipObservation, "FrameSkip of runner.envs.transforms with max_pool=true"),
        (theirs.Autoreset, "begins every episode itself"),
        (theirs.RecordEpisodeStatistics, "logged anyway"),
        (
            lambda env: theirs.DelayObservation(theirs.NormalizeObservation(env), 1),
            "network.normalize_observations=true",
        ),
    ],
)
def test_wrappers_whose_state_crosses_episodes_are_refused_with_what_to_use_instead(wrap, instead):
    with pytest.raises(ConfigError, match=f"^env.transforms.mine: .* is not taken: .*{instead}"):
        made(Lives, mine=wrap)


def test_a_normalizer_of_somebody_elses_does_not_repeat_itself_and_says_so(caplog):

    class Mine(theirs.NormalizeObservation):
        """Not gymnasium's by its module."""

    assert environment(Counter, transforms={"mine": Mine}).resume_mode == "none"
    assert "restarts its episodes" in caplog.text


def test_actions_are_repeated_before_all_transforms_unless_one_is_called_frame_skip():
    env = made(Lives, 2, stack=STACK)
    assert steps(env, [0, 0])[0][2][:, 0, 0].tolist() == [0, 2, 4]  # a stack of what is seen, not of every frame
    env = made(partial(Lives, 1, 100), 2, noops=partial(NoopReset, noops=1), frame_skip=partial(FrameSkip, skip=2))
    assert steps(env, [0])[0][1][0, 0] == 1 + 2  # the no-op is a single frame


@pytest.mark.parametrize("repeat", [partial(FrameSkip, skip=4), partial(theirs.RepeatAction, num_repeats=4)])
def test_frames_that_would_be_counted_wrongly_are_refused(repeat):
    with pytest.raises(ConfigError, match="repeated 4 times, while frame_skip=1 counts the frames"):
        made(Lives, frame_skip=repeat)
    with pytest.raises(ConfigError, match="repeated 16 times, while frame_skip=4"):
        made(Lives, 4, other_name=repeat)
    with pytest.raises(ConfigError, match="repeated 4 times, while frame_skip=1"):
        made(lambda: repeat(Lives()))
    assert made(lambda: repeat(Lives()), 4).step is not None  # it is not made to repeat them again


def test_small_wrappers_by_hand():
    crop = made(Catch, crop=partial(CenterCrop, height=4, width=2))
    assert crop.observation_space.shape == (4, 2, 3)
    whole = Catch().reset(seed=3)[0]
    assert np.array_equal(crop.reset(seed=3)[0], whole[3:7, 2:4])
    assert steps(ScaleReward(Counter(), 0.5, 1.0), [0, 0])[1] == [1.5, 2.0]
    shifted = ShiftedObservation(Counter(), [1.0, 0.1], [2.0, 1.0])
    np.testing.assert_allclose(steps(shifted, [0])[0], [[-0.5, 0], [0, 0]], atol=1e-7)
    with pytest.raises(ValueError, match="scale > 0"):
        ShiftedObservation(Counter(), 0.0, 0.0)
    one_hot = OneHotAction(Counter())
    assert one_hot.action_space.shape == (3,)
    assert steps(one_hot, [np.array([0.1, 0.2, 0.9])])[1] == [1.0]
    assert one_hot.unwrapped.actions == [2]


def lives(num_envs=1, seed=0, **more):
    transforms = {"life_loss": LifeLoss, "stack": STACK, **more}
    return make_environment(streams=Streams(seed), make=Lives, num_envs=num_envs, transforms=transforms)


def test_a_lost_life_ends_an_episode_and_the_game_goes_on():
    env = lives()
    arrays = follow(env, 14)
    # Each life after the first begins with a no-op, which is one of its four steps.
    assert np.flatnonzero(arrays.terminated[:, 0]).tolist() == [3, 6, 9, 13]
    assert arrays.next_observation[[3, 6, 9, 13], 0, -1, 0, 0].tolist() == [4, 8, 12, 4]  # the real last ones
    assert arrays.episode_length[[3, 6, 9, 13], 0].tolist() == [4, 3, 3, 4]
    assert arrays.episode_return[[3, 6, 9], 0].tolist() == [1 + 2 + 3 + 4, 6 + 7 + 8, 10 + 11 + 12]
    # A new life begins with a full stack of its first picture, and not with those of the life before.
    assert arrays.observation[4, 0, :, 0, 0].tolist() == [5, 5, 5]
    assert len([seed for seed in env.envs[0].unwrapped.seeds if seed is not None]) >= 2
    assert env.episodes == [1]


@pytest.mark.parametrize("before", [0, 2, 3, 4, 5, 6, 7, 9, 10, 11, 14, 37])
def test_the_tape_of_a_game_goes_through_its_lives(before):
    env, other = lives(2), lives(2)
    assert env.resume_mode == "tape"
    follow(env, before)
    other.load_state_dict(env.state_dict())
    assert np.array_equal(env.observation, other.observation)
    for one, two in zip(follow(env, 60, 1), follow(other, 60, 1), strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_game_with_lives_that_fails_is_played_again_to_the_same_place():
    class Fragile(Lives):
        """Fails once, in its ninth step: in the third life."""

        made = 0

        def __init__(self):
            super().__init__()
            Fragile.made += 1
            self.is_first = Fragile.made == 1

        def step(self, action):
            if self.is_first and self.steps == 8 and len(self.seeds) > 3:
                self.is_first = False
                raise RuntimeError("lost")
            return super().step(action)

    transforms = {"life_loss": LifeLoss, "stack": STACK}
    env = environment(Fragile, transforms=transforms, on_error="restart")
    for one, two in zip(follow(env, 60), follow(lives(), 60), strict=True):
        assert one.tobytes() == two.tobytes()
    assert env.guard.restarts == 1


def test_evaluation_plays_whole_games_for_the_rewards_of_the_game():
    env = lives(clip=partial(theirs.ClipReward, min_reward=-1.0, max_reward=1.0))
    assert follow(env, 3).reward[:, 0].tolist() == [1, 1, 1]
    single = env.make_for_evaluation(0)
    first = single.reset(5)
    assert first.shape == (3, 2, 3)  # all else is as in training
    outcomes = [single.step(0) for _ in range(12)]
    assert [one[2] for one in outcomes] == [False] * 11 + [True]
    assert [one[1] for one in outcomes] == list(range(1, 13))


PIXELS = {
    "render": theirs.AddRenderObservation,
    "resize": partial(theirs.ResizeObservation, shape=(12, 16)),
    "grayscale": theirs.GrayscaleObservation,
    "stack": STACK,
}
TAPED = {
    "stack": {"stack": STACK},
    "delay": {"delay": partial(theirs.DelayObservation, delay=2)},
    "no-ops": {"noops": partial(NoopReset, noops=7), "stack": STACK},
    "time": {"time": partial(theirs.TimeAwareObservation, flatten=True, normalize_time=False)},
    "sticky": {"sticky": partial(theirs.StickyAction, repeat_action_probability=0.3), "stack": STACK},
    "limit": {"limit": partial(theirs.TimeLimit, max_episode_steps=9), "stack": STACK},
    "pixels": PIXELS,
}


@pytest.mark.parametrize("transforms", TAPED.values(), ids=TAPED)
def test_wrappers_with_a_memory_go_on_bit_for_bit(transforms):
    given = {"kwargs": {"render_mode": "rgb_array"}, "transforms": transforms}
    env, other = (environment("CartPole-v1", 2, **given) for _ in range(2))
    assert env.resume_mode == "tape"
    follow(env, 24)
    other.load_state_dict(env.state_dict())
    assert np.array_equal(env.observation, other.observation)
    for one, two in zip(follow(env, 40, 1), follow(other, 40, 1), strict=True):
        assert one.tobytes() == two.tobytes()


def test_a_snapshot_without_what_a_wrapper_remembers_is_not_taken():
    make = partial(Snapshotted, 50)
    assert environment(make).resume_mode == "snapshot"
    assert environment(make, transforms={"clip": partial(theirs.ClipReward, max_reward=1.0)}).resume_mode == "snapshot"
    assert environment(make, transforms={"stack": STACK}).resume_mode == "tape"
    assert environment(make, transforms={"noops": partial(NoopReset, noops=3)}).resume_mode == "tape"


def test_pictures_stay_bytes_in_batches_and_the_last_one_of_an_episode_is_the_real_one():
    env = environment(Catch, transforms={"grayscale": theirs.GrayscaleObservation, "stack": STACK})
    arrays = follow(env, 9)
    assert arrays.observation.dtype == arrays.next_observation.dtype == np.uint8
    assert (env.spec.observation_shape, env.spec.observation_high) == ((3, 10, 6), 255)
    assert arrays.terminated[8, 0]
    assert (arrays.next_observation[8, 0, -1, 9] == 255).sum() + (arrays.next_observation[8, 0, -1, 9] > 0).sum() >= 1
    assert (arrays.next_observation[8, 0, -2, 8] == 255).sum() == 1  # the ball in the row above, a step before
    assert (env.observation[0, :, 0] == 255).sum() == 3  # the next episode: three times its first picture


def test_actions_are_rescaled_and_clipped_by_gymnasiums_wrappers():
    rescale = partial(theirs.RescaleAction, min_action=-1.0, max_action=1.0)
    spec = environment("Pendulum-v1", transforms={"rescale": rescale}).spec
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([-1], [1])
    clipped = environment("Pendulum-v1", transforms={"clip": theirs.ClipAction}).spec
    assert clipped.action_high.tolist() == [np.inf]


@pytest.mark.parametrize("game", ["Breakout", "Pong"])
def test_an_atari_game_goes_on_bit_for_bit_in_its_second_life(game):
    pytest.importorskip("ale_py")
    transforms = {
        "noop_reset": partial(NoopReset, noops=8),
        "frame_skip": partial(FrameSkip, skip=4, max_pool=True),
        **({"life_loss": LifeLoss, "fire": FireReset} if game == "Breakout" else {}),
        "resize": partial(theirs.ResizeObservation, shape=(84, 84)),
        "grayscale": theirs.GrayscaleObservation,
        "stack": partial(theirs.FrameStackObservation, stack_size=4),
    }
    kwargs = {"frameskip": 1, "repeat_action_probability": 0.25}
    given = {"kwargs": kwargs, "frame_skip": 4, "transforms": transforms}
    env, other = (environment(f"ALE/{game}-v5", **given) for _ in range(2))
    assert (env.resume_mode, env.spec.observation_shape, env.spec.frame_skip) == ("tape", (4, 84, 84), 4)
    arrays = follow(env, 130)
    assert arrays.terminated.any() == (game == "Breakout")
    other.load_state_dict(env.state_dict())
    assert np.array_equal(env.observation, other.observation)
    for one, two in zip(follow(env, 40, 1), follow(other, 40, 1), strict=True):
        assert one.tobytes() == two.tobytes()


def drawn(**kwargs):
    return PixelRenderTransform(gymnasium.make("CartPole-v1", render_mode="rgb_array"), **kwargs)


@pytest.mark.pins("PixelRenderTransform", excludes="the environment plays other episodes once its pictures are known")
def test_pictures_take_the_place_of_observations_and_change_nothing_that_is_played():
    plain, env = gymnasium.make("CartPole-v1", render_mode="rgb_array"), drawn()
    plain.reset(seed=3)
    picture, _ = env.reset(seed=3)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (400, 600, 3), np.uint8)
    assert np.array_equal(picture, plain.render())
    for action in (1, 1, 0):
        _, reward, *_ = plain.step(action)
        shown, own_reward, *_ = env.step(action)
        assert own_reward == reward
        assert np.array_equal(shown, plain.render())
    assert not np.array_equal(shown, picture)
    bare = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    bare.reset(seed=5)
    before = bare.unwrapped.np_random.bit_generator.state
    PixelRenderTransform(bare)
    assert bare.unwrapped.np_random.bit_generator.state == before


@pytest.mark.pins("PixelRenderTransform")
def test_pictures_may_stand_beside_the_observations_and_be_left_out_for_a_while():
    env = drawn(key="pixels", preproc=lambda picture: picture[::100, ::100].mean(-1, dtype=np.float32))
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)
    assert {name: value.shape for name, value in seen.items()} == {"observation": (4,), "pixels": (4, 6)}
    assert seen["pixels"].any()
    env.switch()
    assert not env.step(0)[0]["pixels"].any()
    env.switch(True)
    assert env.step(0)[0]["pixels"].any()
    with pytest.raises(ValueError, match="cannot be left out"):
        drawn().switch()


def test_an_environment_that_draws_nothing_is_refused_with_what_to_type():
    with pytest.raises(ValueError, match=r"needs env\.kwargs\.render_mode=rgb_array: CartPoleEnv drew a NoneType"):
        PixelRenderTransform(gymnasium.make("CartPole-v1"))
