"""A deadline for every call into an environment, whether it hangs in Python or in C."""

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

# One that nothing else uses: SIGUSR1 and SIGUSR2 mean preemption to schedulers, SIGALRM belongs to the environment.
NUMBER = int(getattr(signal, "SIGRTMIN", signal.SIGALRM))
GRACE_SECONDS = 5.0
"""Python code answers the signal at once; what has not done so by then never will."""


class Hung(BaseException):
    """Raised inside of a call that has taken too long; no ``Exception``, so that ``except Exception`` lets it pass."""


class Watched(Protocol):
    """Whose calls are watched."""

    def call(self) -> tuple[Any, ...]: ...

    def late(self, seconds: float, where: str) -> str: ...


class Watch:
    """While started, interrupts a call that takes longer than ``seconds``, and ends the process if that does not help.

    Whoever calls an environment sets ``inside`` to itself, and clears it afterwards: two assignments, so that a step
    of 5 us can afford them. The thread that looks at it exists between :meth:`start` and :meth:`stop`.

    Args:
        seconds: that one call may take; ``None``: any number, and there is no thread.
        run: the folder of the run, whose ``run.json`` is told of the end.
    """

    def __init__(self, seconds: float | None = None, run: Any = None) -> None:
        self.seconds, self.run = seconds, run
        self.inside: Watched | None = None
        self._late: tuple[Any, ...] = ()
        self._main = 0
        self._thread: threading.Thread | None = None
        self._process = 0
        self._stop = threading.Event()
        self._handler_before: Any = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._process == os.getpid()

    def start(self) -> None:
        """Begin to watch, unless that is so already; without effect outside of the main thread, where signals go."""
        if self.seconds is None or self.is_running:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        self._process, self._main = os.getpid(), threading.get_ident()
        self._handler_before = signal.signal(NUMBER, self._interrupt)
        self._stop = threading.Event()  # a new one: in a forked process, the old one may be locked for ever
        given = self._stop, self.seconds
        self._thread = threading.Thread(target=self._look, args=given, name="env-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and give the signal back."""
        if self._thread is None or threading.current_thread() is not threading.main_thread():
            return
        if self.is_running:
            self._stop.set()
            self._thread.join()
        self._thread = None
        signal.signal(NUMBER, self._handler_before or signal.SIG_DFL)

    def _look(self, stop: threading.Event, seconds: float) -> None:
        interval = min(max(seconds / 20, 0.02), 1.0)
        seen, passed, before = None, 0.0, time.monotonic()
        while not stop.wait(interval):
            now = time.monotonic()
            # A process that was stopped (Ctrl-Z, a suspended job) has not hung: such a gap counts as two looks.
            gap, before = min(now - before, 2 * interval), now
            call = self._call()
            passed = passed + gap if call and call == seen else 0.0
            seen = call
            if passed >= seconds:
                self._late, passed = call, 0.0
                signal.pthread_kill(self._main, NUMBER)
                if not stop.wait(GRACE_SECONDS) and self._call() == call:
                    self._give_up()

    def _call(self) -> tuple[Any, ...]:
        """The call under way, empty if there is none."""
        inside = self.inside
        return (inside, *inside.call()) if inside is not None else ()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """In the main thread: end the call, if it is still the one that was late."""
        if self._late and self._call() == self._late:
            raise Hung(_place_of(frame))

    def _give_up(self) -> None:
        """The call does not answer: say so without the locks that the main thread may hold, and end the process."""
        where = _place_of(sys._current_frames().get(self._main))
        inside, *_ = self._late
        line = f"{inside.late(self.seconds or 0.0, where)}, and cannot be interrupted: the last checkpoint stays"
        with suppress(OSError):
            os.write(2, f"\n{line}\n".encode())
        if self.run is not None:
            with suppress(Exception):
                self.run.update(status="crashed", reason=line)
            with suppress(Exception), open(Path(self.run.path) / "run.log", "a") as log:
                faulthandler.dump_traceback(log)
        os._exit(1)


def _place_of(frame: FrameType | None) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else "foreign code"
