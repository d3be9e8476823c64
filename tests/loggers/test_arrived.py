from types import SimpleNamespace

import pytest

from runner.loggers.arrived import Arrived
from runner.loggers.journal import Row


class Server:
    def __init__(self, *values):
        self.values, self.asked = [SimpleNamespace(step=step, timestamp=time) for step, time in values], 0

    def __call__(self, name):
        self.asked += 1
        return self.values


def row(number, step, time):
    return Row(number, step, time, {"x": 1.0})


def test_nobody_is_asked_where_nothing_is_in_doubt():
    server = Server((10, 100))
    assert not Arrived(server, set).has("x", row(0, 10, 100))
    assert server.asked == 0


def test_a_value_of_the_same_time_is_the_rows_own():
    server = Server((10, 100), (20, 200))
    arrived = Arrived(server, lambda: {100, 200, 300})
    arrived.doubt(["x"])
    assert [arrived.has("x", row(number, 10 * number, 100 * number)) for number in (1, 2, 3)] == [True, True, False]
    assert not arrived.has("y", row(1, 10, 100))
    assert server.asked == 1


def test_it_asks_again_after_the_next_doubt():
    server = Server()
    arrived = Arrived(server, lambda: {100})
    arrived.doubt(["x"])
    assert not arrived.has("x", row(1, 10, 100))
    server.values = [SimpleNamespace(step=10, timestamp=100)]
    assert not arrived.has("x", row(1, 10, 100))
    arrived.doubt(["x"])
    assert arrived.has("x", row(1, 10, 100))


@pytest.mark.parametrize("left_behind", [0, 1, 2, 3])
def test_what_a_killed_process_sent_is_replaced_by_as_many_rows_of_that_step(left_behind):
    arrived = Arrived(Server(*((10, 50 + index) for index in range(left_behind))), lambda: {100, 101})
    arrived.doubt(["x"])
    for _ in range(2):  # and the answer stays the same
        found = [
            arrived.has("x", row(5, 10, 100)),
            arrived.has("x", row(6, 10, 101)),
            arrived.has("x", row(7, 20, 102)),
        ]
        assert found == [left_behind >= 1, left_behind >= 2, False]


def test_what_rows_of_ours_sent_is_nobodys_place():
    arrived = Arrived(Server((10, 100)), lambda: {100, 101})
    arrived.doubt(["x"])
    assert not arrived.has("x", row(2, 10, 101))
