"""How long a run may take to stop after a signal."""

import os
import subprocess
import sys

import pytest

BUSY = """
import os, signal, time
from runner.config.signals import StopSignals

with StopSignals(grace_seconds=0.5):
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.05)
"""


def test_signals_of_another_kind_do_not_put_off_the_end_of_a_run_that_does_not_stop():
    ended = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75, ended
    assert ended.stderr.endswith("not saved within 0.5 s: the run will go on from the checkpoint before\n")


@pytest.mark.parametrize("flags", [[], ["-m"]])
@pytest.mark.parametrize("text", ["x", "-1", "inf"])
def test_a_time_that_is_none_is_one_line_before_anything_is_written(ask, monkeypatch, text, flags):
    monkeypatch.setenv("HOOKLINE_GRACE_SECONDS", text)
    answer = ask(*flags, "total_frames=60", "logger=csv")
    assert (answer.code, os.listdir(ask.folder)) == (2, [])
    (line,) = answer.mistakes
    assert line.startswith(f"HOOKLINE_GRACE_SECONDS={text} (environment): how many seconds a run may take to stop")
