"""Makes the tests independent of the shell they are started from, and says where their time went."""

import faulthandler
import os
import time

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

LONGEST_SLOW = 3600.0
"""Seconds after which a slow test hangs; the others have what pyproject.toml says."""

STARTED = time.monotonic()

for name in ("MLFLOW_TRACKING_URI", "CKPT_BACKEND", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)
os.environ |= {
    "OMP_NUM_THREADS": "1",  # two workers on two cores: more threads make each other slow
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "SDL_VIDEODRIVER": "dummy",
}


@pytest.fixture(autouse=True)
def time_for_slow_tests(request):
    """Some train three seeds one after the other, on machines that are busy."""
    if request.node.get_closest_marker("slow"):
        into = request.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(LONGEST_SLOW, exit=True, file=into)


def pytest_terminal_summary(terminalreporter):
    """Print what tests noted with ``record_property("note", ...)``, and the times that ``scripts/test`` measured."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        if getattr(report, "when", None) == "call":
            for key, value in report.user_properties:
                if key == "note":
                    terminalreporter.write_line(f"note: {value}")
    if times := os.environ.get("HOOKLINE_TEST_TIMES"):
        seconds = round(time.monotonic() - STARTED)
        in_all = seconds + int(os.environ["HOOKLINE_TEST_SECONDS"])
        terminalreporter.write_line(f"time: {times}pytest {seconds} s, in all {in_all} s")
