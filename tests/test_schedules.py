from math import sqrt

import pytest
import torch

from runner.learner.optimization import Optimization
from runner.schedules import Constant, Cosine, Linear, Piecewise, check_points, linear, on_the_axis_of, piecewise
from runner.spec import Progress


@pytest.mark.parametrize(("now", "expected"), [(0, 1.0), (25, 0.775), (50, 0.55), (100, 0.1), (1000, 0.1)])
def test_linear_is_a_straight_line_and_then_its_end(now, expected):
    assert linear(1.0, 0.1, 100, now) == pytest.approx(expected, abs=1e-15)  # 1 - 0.9 * now / 100


def test_linear_learning_rate_falls_from_the_configured_one_over_the_run_or_over_given_steps():
    assert Linear(200, end=0.0, env_steps=None)(0.4, 50) == pytest.approx(0.3)  # a quarter of the run
    assert Linear(200, end=0.2, env_steps=100)(0.4, 50) == pytest.approx(0.3)  # half of the given steps
    assert Linear(200, end=0.2, env_steps=100)(0.4, 150) == 0.2


@pytest.mark.parametrize(
    ("now", "share"), [(0, 1.0), (25, (1 + sqrt(0.5)) / 2), (100 / 3, 0.75), (50, 0.5), (100, 0.0), (500, 0.0)]
)
def test_cosine_is_half_a_wave(now, share):  # cos(pi/4) = sqrt(1/2), cos(pi/3) = 1/2, cos(pi/2) = 0
    assert Cosine(100, end=1.0, env_steps=None)(3.0, now) == pytest.approx(1.0 + 2.0 * share, abs=1e-12)


@pytest.mark.parametrize(("now", "expected"), [(0, 1), (5, 2), (10, 3), (20, 1), (29, -0.8), (30, -1), (99, -1)])
def test_piecewise_is_linear_between_points_and_constant_after_the_last(now, expected):
    assert piecewise([[0, 1], [10, 3], [30, -1]], now) == pytest.approx(expected)
    assert Piecewise([(0, 1), (10, 3), (30, -1)])(123.0, now) == pytest.approx(expected)  # whatever was configured


def test_constant_is_the_configured_value():
    assert Constant()(0.3, 10**9) == 0.3


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "two or more"),
        ([[0, 1.0]], "two or more"),
        ("01", "two or more"),
        (5, "two or more"),
        ([[0, 1], [1]], "pair"),
        ([[0, 1], [1, 2, 3]], "pair"),
        ([[0, 1], "12"], "pair"),
        ([0, 0.001], "pair"),
        ([[1, 1], [2, 1]], "begins at t = 0"),
        ([[0, 1], [5, 1], [5, 2]], "must grow"),
        ([[0, 1], [7, 1], [5, 2]], "must grow"),
        ([[0, 1], [float("nan"), 1]], "must grow"),
    ],
)
def test_points_that_make_no_schedule_are_refused_at_once(points, message):
    with pytest.raises(ValueError, match=message):
        check_points(points)
    with pytest.raises(ValueError, match=message):
        Piecewise(points)


@pytest.mark.parametrize(
    "schedule", [Linear(100, 0.0, None), Cosine(100, 0.0, None), Piecewise([(0, 1.0), (100, 0.0)]), Constant()]
)
def test_reading_advances_nothing(schedule):
    forwards = [schedule(1.0, now) for now in range(0, 120, 10)]
    backwards = [schedule(1.0, now) for now in reversed(range(0, 120, 10))]
    assert forwards == backwards[::-1]


def test_every_parameter_group_follows_the_schedule():
    one, other = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [one], "lr": 1.0}, {"params": [other], "lr": 0.5}])
    optimization = Optimization(optimizer, schedule=Linear(100, 0.0, None))
    optimization.apply((one + other).sum(), env_steps=0)
    assert (one.item(), other.item()) == (-1.0, -0.5)  # the gradient is 1: each moves by its own rate
    optimization.apply((one + other).sum(), env_steps=75)  # a quarter of each is left
    assert (one.item(), other.item()) == (-1.25, -0.625)
    optimization.schedule = Piecewise([(0, 0.1), (100, 0.3)])
    optimization.apply((one + other).sum(), env_steps=50)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2])


def test_over_updates_a_schedule_goes_by_those_and_not_by_env_steps():
    progress = Progress(axis="updates")
    schedule = on_the_axis_of(progress, Linear(100, 0.0, None))
    assert schedule(1.0, 0) == 1.0
    progress.updates = 25
    assert schedule(1.0, 0) == 0.75
    assert schedule(1.0, 10**6) == 0.75


def test_where_env_steps_are_played_a_schedule_stays_what_it_is():
    schedule = Linear(100, 0.0, None)
    assert on_the_axis_of(Progress(), schedule) is schedule
    assert on_the_axis_of(Progress(axis="updates"), None) is None
