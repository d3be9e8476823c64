"""SIGTERM, SIGINT and SIGHUP ask a run to save and stop; a second one does not ask, nor does one before it began."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from runner.runs import has_run, read_run, remove_unstarted

PREEMPTED = 75
GRACE = "HOOKLINE_GRACE_SECONDS"
GRACE_SECONDS = 30.0
"""A run that has not saved so long after a signal ends without: most schedulers kill it then anyway."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_claimed: list[Path] = []
_entered: list["StopSignals"] = []

Handler = Callable[[int, FrameType | None], None]


def stop_at_once() -> None:
    """From now on a signal ends this process at once: exit code 75, one line, and no folder without a run in it."""
    _handle(_stop_at_once)


def remove_if_unstarted(folder: Path) -> Path:
    """Let a signal that comes before there is a run in ``folder``, which is returned, remove it."""
    _claimed.append(folder)
    return folder


def end_with(exit_code: int) -> None:
    """How everything went is known: a signal that comes from now on only makes this process end sooner."""
    _handle(lambda number, frame: os._exit(exit_code))


def read_grace_seconds() -> float:
    """How long a run may take to stop, from the environment; ``ValueError`` where that is no number of seconds."""
    text = os.environ.get(GRACE, "")
    try:
        seconds = float(text or GRACE_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{GRACE}={text}: how many seconds a run may take to stop after a signal, for example 30")
    return seconds


class StopSignals:
    """While entered, remembers the first signal for the next safe point, and exits at once (75) on the second.

    So it does when the run has not stopped after ``grace_seconds``, whatever it is that it waits for.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.grace_seconds = grace_seconds
        self._reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def reason(self) -> str | None:
        """The name of the signal that came, if one did."""
        return self._reason

    def __enter__(self) -> "StopSignals":
        self._before = _handle(self._note)
        if self._before:
            _entered.append(self)
            self._begin_watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            _entered.remove(self)
            self._end_watch()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None:
            os._exit(PREEMPTED)
        if number == signal.SIGHUP:
            _let_go_of(self._terminals)
        self._reason = signal.Signals(number).name
        within = f"within {self.grace_seconds:g} s"
        _say(f"\n{self._reason}: saving and stopping {within} (again to stop at once)\n")

    def _begin_watch(self) -> None:
        """A thread of its own sees signals even while the main one is stuck in foreign code."""
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        self._writing, self._fd_before = writing, signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._watch = threading.Thread(target=self._watch_signals, name="signals", daemon=True)
        self._watch.start()

    def _watch_signals(self) -> None:
        deadline: float | None = None
        while select.select([self._reading], [], [], _left(deadline))[0]:
            for number in os.read(self._reading, 64):
                if number == 0:
                    return
                if number in _SIGNALS and deadline is not None:
                    os._exit(PREEMPTED)
                if number in _SIGNALS:
                    deadline = time.monotonic() + self.grace_seconds
            # Any signal that has a handler wakes this thread, an alarm or a child's end: they may never cease to come.
            if deadline is not None and _left(deadline) == 0:
                break
        _say(f"not saved within {self.grace_seconds:g} s: the run will go on from the checkpoint before\n")
        os._exit(PREEMPTED)

    def _end_watch(self) -> None:
        signal.set_wakeup_fd(self._fd_before)
        os.write(self._writing, b"\0")
        self._watch.join()
        os.close(self._reading)
        os.close(self._writing)


def _left(deadline: float | None) -> float | None:
    """Seconds until then; ``None`` where there is no deadline."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def _handle(handler: Handler) -> dict[signal.Signals, Any]:
    """Let ``handler`` have the signals, but those that whoever started us ignores (nohup); returns those before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    while _claimed:
        folder = _claimed.pop()
        if _is_done(folder):  # all that was left to do is to end
            os._exit(0)
        if folder.is_dir() and not has_run(folder):
            for path in (*folder.iterdir(), folder):  # a sweep's jobs first
                remove_unstarted(path)
    _say(f"{signal.Signals(number).name}: stopped; no run was under way\n")
    os._exit(PREEMPTED)


def _is_done(folder: Path) -> bool:
    try:
        return bool(read_run(folder)["status"] == "done")
    except ValueError:
        return False


def _let_go_of(terminals: list[int]) -> None:
    """Nothing that is printed from now on fails for want of the terminal that was closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _say(text: str) -> None:
    """Print to the terminal without Python's buffers, which the code that was interrupted may be using."""
    with suppress(OSError):
        os.write(2, text.encode())


def _leave_signals_to_parent() -> None:
    """In a process forked from a run: Ctrl-C reaches it too, but whether to stop is for the run to say."""
    if _entered:
        _entered.clear()
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_signals_to_parent)
