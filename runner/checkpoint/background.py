"""Work in a thread of its own, one piece at a time."""

import time
from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """Runs one piece of work at a time, each in a new thread.

    A thread that waited for more work would be missing in a forked process, where nobody would notice. Python does not
    exit before the thread has come to its end.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._result: Result | None = None
        self._error: Exception | None = None

    def start(self, work: Callable[[], Result]) -> None:
        """Begin ``work``, once what is under way has come to its end."""
        self.finish()
        self._result, self._error = None, None
        self._thread = Thread(target=self._run, args=(work,), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait for what is under way, however it ends."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def result(self) -> Result | None:
        """Wait for what is under way: what it returned, or what it raised; ``None`` before the first work."""
        self.finish()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self, work: Callable[[], Result]) -> None:
        # Whoever started this thread waits until it runs, and then for the interpreter: 5 ms, if it were not given up.
        time.sleep(1e-4)
        try:
            self._result = work()
        except Exception as error:
            self._error = error
