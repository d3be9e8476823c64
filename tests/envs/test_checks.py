from functools import partial

import numpy as np
import pytest
from gymnasium import spaces

from runner.envs.checks import LARGEST, Bounds, Checker, Wrong, described
from runner.envs.gym import describe
from runner.spec import EnvFault
from tests.envs.test_gym import Spaces
from tests.envs.test_restore import follow
from tests.toys import Counter, collector, environment


def checker(shape=(4,), dtype=np.float32):
    whole = np.issubdtype(dtype, np.integer)
    space = spaces.Box(0, 200, shape, dtype) if whole else spaces.Box(-np.inf, np.inf, shape, dtype)
    return Checker(describe(Spaces(space), "Spaces", 1))


def is_suspicious(one, observation, reward):
    """What the fast look of a step says."""
    return not -LARGEST < one.total(observation, reward) < LARGEST


@pytest.mark.parametrize("shape", [(1,), (4,), (32,), (33,), (5, 7), (3, 64, 64), ()])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_number_that_is_not_finite_is_overlooked_wherever_it_is(shape, dtype):
    one = checker(shape)
    size = int(np.prod(shape))
    generator = np.random.default_rng(0)
    for place in {0, size - 1, *generator.integers(size, size=5).tolist()}:
        for value in (np.nan, np.inf, -np.inf):
            observation = generator.normal(size=shape).astype(dtype)
            observation = np.asarray(observation)
            assert not is_suspicious(one, observation, 1.0)
            observation.reshape(-1)[place] = value
            assert is_suspicious(one, observation, 1.0)
            with pytest.raises(Wrong, match=rf"the observation is {value} at "):
                one.check_observation(observation)
    assert is_suspicious(one, np.zeros(shape, dtype), float("nan"))
    assert is_suspicious(one, np.zeros(shape, dtype), float("inf"))


@pytest.mark.parametrize("shape", [(4,), (40,)])
def test_large_numbers_are_no_fault(shape):
    one, observation = checker(shape), np.full(shape, 3e38, np.float32)
    assert one.check_step((observation, -3e38, False, False)) is observation


def test_what_overflows_float32_is_a_fault():
    one = checker()
    assert is_suspicious(one, np.full(4, 1e39), 0.0)
    with pytest.raises(Wrong, match=r"the observation is 1e\+39 at \[0\]"):
        one.check_observation(np.full(4, 1e39))
    with pytest.raises(Wrong, match=r"the reward is 1e\+39"):
        one.check_step((np.zeros(4), 1e39, False, False))


def test_whole_numbers_that_fit_are_taken_and_no_others():
    one = checker((2, 2), np.uint8)
    assert one.check_observation([[1, 2], [3, 200]]).tolist() == [[1, 2], [3, 200]]
    with pytest.raises(Wrong, match="from 1 to 300; its space declares uint8"):
        one.check_observation([[1, 2], [3, 300]])
    with pytest.raises(Wrong, match="the dtype float64; its space declares uint8"):
        one.check_observation(np.full((2, 2), 0.5))
    assert one.fits(np.dtype(np.uint8))
    assert not one.fits(np.dtype(np.int64))


class Overflowing(Counter):
    """Counts in int64 in a space of uint8; beyond 255 comes 0."""

    def __init__(self):
        super().__init__(1000)
        self.observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def _observation(self):
        return np.array([self.steps, 0])


def test_a_number_that_would_be_cut_to_another_one_is_a_fault():
    with pytest.raises(EnvFault, match=r"step 256: the observation goes from 0 to 256; its space declares uint8"):
        follow(environment(Overflowing), 400)


class Lists(Counter):
    """Returns what is no array, but says the same."""

    def __init__(self, kind):
        super().__init__(50)
        self.kind = kind

    def _observation(self):
        numbers = [self.steps, 0.1]
        return self.kind(numbers) if self.kind in (list, tuple) else np.array(numbers, self.kind)


@pytest.mark.parametrize("kind", [list, tuple, np.float32, np.float16])
def test_observations_need_be_no_arrays(kind):
    batch = next(iter(collector(environment(partial(Lists, kind)), 4)))
    assert batch["observation"][0, :, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("reward", [1, np.float32(1), np.int64(1), np.array(1.0), True])
def test_rewards_may_be_any_kind_of_number(reward):
    class Paying(Counter):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, reward, *rest

    batch = next(iter(collector(environment(partial(Paying, 50)), 4)))
    assert batch["next", "reward"].tolist() == [[1, 1, 1, 1]]
    assert batch["next", "episode_return"].tolist() == [[1, 2, 3, 4]]


def test_bounds_forgive_what_rounding_does():
    bounds = Bounds(spaces.Box(np.array([-1.2, -np.inf, 0]), np.array([0.6, 8.0, np.inf]), dtype=np.float64))
    edge = np.array([[[-1.2, 8.0, 0.0], [0.6, -3e38, 3e38]]], np.float32)
    assert bounds.first_outside(edge) is None
    edge[0, 1, 1] = 8.001
    assert bounds.first_outside(edge) == (0, 1, 1)


def test_an_error_that_cannot_be_printed_is_still_described():
    class Mute(Exception):
        def __str__(self):
            raise ValueError

    with pytest.raises(Mute) as mute:
        raise Mute
    assert described("step", mute.value).startswith("step raised Mute in test_checks.py:")
    long = described("step", RuntimeError("a long\nstory " * 1000))
    assert len(long) < 400
    assert "\n" not in long


def test_an_unpacking_of_the_environments_own_is_no_wrong_tuple():
    class Unpacking(Counter):
        def step(self, action):
            one, two = (1, 2, 3)
            return super().step(one + two)

    with pytest.raises(EnvFault, match=r"step raised ValueError in test_checks\.py:\d+: too many values to unpack"):
        environment(Unpacking)
