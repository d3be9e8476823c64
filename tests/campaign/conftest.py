"""Gives campaigns of minutes the time they take; each of their processes has a deadline of its own."""

import faulthandler
import sys

import pytest

MOST_SECONDS = 7200


@pytest.fixture(autouse=True)
def _time_of_a_campaign(request):
    """Without it, a slow test would be ended by ``faulthandler_timeout``, which is meant for tests of seconds."""
    if request.node.get_closest_marker("slow"):
        faulthandler.dump_traceback_later(MOST_SECONDS, file=sys.__stderr__, exit=True)
