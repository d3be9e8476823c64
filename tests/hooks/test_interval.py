import pytest

from runner.hook import Interval
from tests.toys import at


def fired(interval, counts, unit="env_steps"):
    return [count for count in counts if interval.fires(at(**{unit: count}))]


def test_an_interval_fires_when_a_multiple_is_crossed():
    # 7 // 10 = 0, 13 // 10 = 1, 19 // 10 = 1, 20 // 10 = 2, 55 // 10 = 5 (once, though three were passed)
    assert fired(Interval({"env_steps": 10}), [7, 13, 19, 20, 20, 55, 59, 60]) == [13, 20, 55, 60]


@pytest.mark.parametrize("unit", ["env_steps", "frames", "updates", "episodes", "batches", "seconds"])
def test_every_counter_of_a_run_is_a_unit(unit):
    assert fired(Interval({unit: 4}), range(10), unit) == [4, 8]


def test_fractions_of_seconds_are_counted():
    assert fired(Interval({"seconds": 0.5}), [0.4, 0.6, 0.9, 1.1], "seconds") == [0.6, 1.1]


def test_a_loaded_interval_goes_on_where_it_was():
    one, other = Interval({"env_steps": 10}), Interval({"env_steps": 10})
    fired(one, [13])
    other.load_state_dict(one.state_dict())
    assert fired(other, [13, 19, 20]) == fired(one, [13, 19, 20]) == [20]


def test_a_new_number_takes_effect_on_resume():
    one, other = Interval({"env_steps": 10}), Interval({"env_steps": 5})
    fired(one, [13])
    other.load_state_dict(one.state_dict())
    assert fired(other, [14, 15, 19]) == [15]


def test_counts_of_another_unit_are_not_taken_over():
    one, other = Interval({"env_steps": 10}), Interval({"updates": 10})
    fired(one, [5_000])
    other.load_state_dict(one.state_dict())
    assert fired(other, [9, 10, 20], "updates") == [10, 20]


@pytest.mark.parametrize("every", [{}, {"env_steps": 1, "updates": 1}])
def test_an_interval_has_one_unit(every):
    with pytest.raises(ValueError, match="exactly one unit"):
        Interval(every)


@pytest.mark.parametrize("every", [{"steps": 1}, {"frame_skip": 1}, {"env_steps": 0}, {"env_steps": -5}])
def test_other_units_and_numbers_are_refused(every):
    with pytest.raises(ValueError, match=r"of env_steps, frames, updates, episodes, batches, seconds$"):
        Interval(every)


def test_an_interval_can_be_read():
    assert str(Interval({"env_steps": 1e6})) == "every 1e+06 env_steps"
