"""SIGTERM and SIGINT ask a run to save and stop; a second one does not ask."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

PREEMPTED = 75
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "SIGINT"}


class StopSignals:
    """While entered, remembers the first signal for the next safe point, and exits at once (75) on the second."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def reason(self) -> str | None:
        """The name of the signal that came, if one did."""
        return self._reason

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _NAMES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None:
            os._exit(PREEMPTED)
        self._reason = _NAMES[signal.Signals(number)]
        print(f"\n{self._reason}: saving and stopping (again to stop at once)", file=sys.stderr, flush=True)
