import pytest
import torch

from runner.builders import make_replay_buffer
from runner.spec import IS_INIT, NEXT_OBSERVATION, NEXT_REWARD, NEXT_STEPS, NEXT_TERMINATED, OBSERVATION, HooklineError
from tests.data.episodes import Environments

CASES = [
    (2, 0, (7, 5), 40),
    (2, 0, (7, 9, 9), 20),
    (1, 0, (13,) * 5, 20),
    (3, 3, (5, 5), 60),
    (3, 3, (4,) * 9, 30),
    (1, 1, (1,) * 40, 30),  # a trajectory comes back in its column after another one
]
"""Columns, environments besides, steps of the batches, capacity: before and after the ring has come round."""


def buffer(capacity, **options):
    options = {"batch_size": 512, "gamma": 0.9, **options}
    return make_replay_buffer(torch.Generator().manual_seed(0), capacity=capacity, **options)


def played(num_columns, more, steps, source, seed=0):
    environments = Environments(num_columns, seed, more)
    for number in steps:
        source.extend(environments.collect(number))
    return environments


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize(("columns", "more", "steps", "capacity"), CASES)
def test_slices_are_those_that_a_plain_loop_finds(columns, more, steps, capacity, length):
    source = buffer(capacity, sampler="slices", slice_length=length, batch_size=200 * length)
    windows = played(columns, more, steps, source).windows(capacity // columns, length)
    expected = {tuple(step.observation for step in window) for window in windows.values() if len(window) == length}
    if not expected:
        with pytest.raises(HooklineError, match="no episode has"):
            source.sample()
        return
    assert source.sample().batch_size == (200, length)
    drawn = {tuple(one) for _ in range(10) for one in source.sample()[OBSERVATION].long().tolist()}
    assert drawn == expected


@pytest.mark.parametrize("n_step", [1, 2, 4])
@pytest.mark.parametrize(("columns", "more", "steps", "capacity"), CASES)
@pytest.mark.parametrize("sampler", [{}, {"sampler": "slices", "slice_length": 2}], ids=["transitions", "slices"])
def test_n_step_windows_are_those_of_a_plain_loop(columns, more, steps, capacity, n_step, sampler):
    source = buffer(capacity, n_step=n_step, **sampler)
    windows = played(columns, more, steps, source).windows(capacity // columns, n_step)
    sub_batch = source.sample()
    keys = (OBSERVATION, NEXT_REWARD, NEXT_OBSERVATION, NEXT_TERMINATED)
    rows = list(zip(*(sub_batch[key].flatten().tolist() for key in keys), strict=True))
    taken = sub_batch[NEXT_STEPS].flatten().tolist() if n_step > 1 else [1] * len(rows)
    for (observation, reward, following, terminated), number in zip(rows, taken, strict=True):
        window = windows[int(observation)]
        assert number == len(window)
        assert reward == pytest.approx(sum(0.9**ahead * step.reward for ahead, step in enumerate(window)), abs=1e-5)
        assert (following, terminated) == (window[-1].following, window[-1].kind == "terminated")
    if not sampler:
        assert {int(row[0]) for row in rows} == set(windows)


def test_every_slice_is_equally_likely():
    source = buffer(100, sampler="slices", slice_length=3, batch_size=30_000)
    windows = played(2, 0, (50,), source).windows(50, 3)
    starts = sorted(observation for observation, window in windows.items() if len(window) == 3)
    drawn = torch.cat([source.sample()[OBSERVATION][:, 0].long() for _ in range(3)])
    counts = torch.tensor([(drawn == start).sum() for start in starts]).double()
    expected, count = 30_000 / len(starts), len(starts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # A chi-square value has mean count - 1 and variance 2 (count - 1); five standard deviations are far out.
    assert abs(chi_square - (count - 1)) < 5 * (2 * count) ** 0.5
    assert counts.sum() == 30_000


def test_rare_slices_are_found_by_looking_everywhere():
    source = buffer(4000, sampler="slices", slice_length=12, batch_size=48)
    windows = played(1, 0, (4000,), source).windows(4000, 12)
    expected = {observation for observation, window in windows.items() if len(window) == 12}
    assert 0 < len(expected) < 200
    drawn = {int(one) for _ in range(100) for one in source.sample()[OBSERVATION][:, 0]}
    assert drawn <= expected
    assert len(drawn) > len(expected) / 3


def test_a_sequence_begins_with_no_recurrent_state():
    source = buffer(40, sampler="slices", slice_length=2, batch_size=6)
    played(1, 0, (40,), source)
    assert source.sample()[IS_INIT].tolist() == [[True, False]] * 3


def test_a_length_that_no_episode_has_says_what_to_do():
    source = buffer(40, sampler="slices", slice_length=40, batch_size=80)
    played(1, 0, (40,), source)
    with pytest.raises(HooklineError, match=r"no episode has source\.slice_length=40 steps among the 40 transitions"):
        source.sample()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "slices"}, "needs a source.slice_length"),
        ({"sampler": "slices", "slice_length": 3}, "source.batch_size=512 is not a multiple of source.slice_length=3"),
        ({"slice_length": 4}, "source.slice_length goes with source.sampler=slices, and not with uniform"),
        ({"alpha": 0.5}, "source.alpha goes with source.sampler=prioritized"),
        ({"sampler": "slices", "slice_length": 4, "beta": 0.5}, "source.beta goes with source.sampler=prioritized"),
    ],
)
def test_options_of_another_sampler_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        buffer(40, **options)
