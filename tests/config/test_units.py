"""A unit that is null gives way to another, in files and on the command line."""

import pytest

from runner.config.arguments import parse_arguments
from runner.config.check import check


def config(*overrides):
    return check(parse_arguments(overrides)).config


def test_a_file_takes_another_unit_by_setting_the_first_to_null():
    found = config("algo=cql", "source.path=.", "tuned=null")
    assert found["evaluation"]["every"] == {"updates": 2000}
    assert found["log_every"] == {"updates": 500}


def test_the_unit_that_is_typed_replaces_both():
    found = config("algo=cql", "source.path=.", "evaluation.every.updates=7", "log_every.seconds=9")
    assert found["evaluation"]["every"] == {"updates": 7}
    assert found["log_every"] == {"seconds": 9}


def test_a_limit_set_to_null_is_none():
    assert config("+stop_after.episodes=null")["stop_after"] == {}


def test_nothing_but_nulls_is_refused():
    with pytest.raises(Exception, match=r"log_every = \{\}: expected one unit|log_every"):
        config("log_every.env_steps=null")
