"""The process that talks to MLflow, as the process that trains sees it."""

import atexit
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runner.loggers.mlflow_database import address, needs_database

logger = logging.getLogger(__name__)

LOGGER = "runner.loggers.mlflow.MLFlowLogger"
_ROOT = Path(__file__).parents[2]
_EXIT_SECONDS = 1.0

RESTART_SECONDS = 30.0
LOOK_SECONDS = 0.2

Message = dict[str, Any]


class SenderProcess:
    """Runs :mod:`runner.loggers.mlflow_sender`; nothing here waits for it unless told how long."""

    def __init__(self, with_database: bool = False) -> None:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            # -P: a file of the working directory that happens to be called mlflow.py is none of our business
            [sys.executable, "-P", "-m", "runner.loggers.mlflow_sender", *(["database"] if with_database else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | own,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._inbox, self._outbox = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._inbox, False)
        self._rest = b""
        self._owner = os.getpid()
        self.is_alive, self.is_ready = True, False

    def tell(self, message: Message) -> None:
        """Send a message, unless the process is gone or has not read the last thousands."""
        try:
            os.write(self._inbox, json.dumps(message).encode() + b"\n")
        except BlockingIOError:
            pass
        except OSError:
            self.is_alive = False

    def hear(self, seconds: float = 0.0) -> list[Message]:
        """What it has said since the last time; waits that long for something."""
        messages: list[Message] = []
        while self.is_alive and select.select([self._outbox], [], [], 0.0 if messages else seconds)[0]:
            chunk = os.read(self._outbox, 65536)
            self.is_alive = bool(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            messages += [json.loads(line) for line in lines]
        self.is_ready = self.is_ready or any("ready" in message for message in messages)
        return messages

    def stop(self, at_once: bool = False) -> None:
        """End the process: by leaving it, or with whatever it is doing."""
        self.is_alive = False
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        if self._owner != os.getpid():
            return  # a fork of the one that started it
        try:
            self._process.wait(0 if at_once else _EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_idle: list[tuple[object, SenderProcess]] = []
"""At most one process that waits for its next run: started early, or left by the run before it in a sweep."""


def warm_up(loggers: Mapping[str, Any]) -> None:
    """Start the process that the first MLflow logger of a configuration will need; it imports MLflow meanwhile."""
    for node in loggers.values():
        if isinstance(node, Mapping) and node.get("_target_") == LOGGER:
            return give_back(SenderProcess(needs_database(address(node.get("tracking_uri")))))


def take(uri: str) -> SenderProcess:
    """A process that waits, or a new one."""
    while _idle:
        place, process = _idle.pop()
        process.hear()
        if process.is_alive and place == _place():
            return process
        process.stop()
    return SenderProcess(needs_database(uri))


def give_back(process: SenderProcess) -> None:
    """Keep a process that has nothing to do for the next run."""
    stop_idle()
    _idle.append((_place(), process))


@atexit.register
def stop_idle() -> None:
    """End the process that waits, if there is one."""
    while _idle:
        _idle.pop()[1].stop()


def _place() -> object:
    """What a process was born with, and another run may have changed since."""
    settings = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
    return os.getpid(), os.getcwd(), settings


class Link:
    """The connection of one run to the process that sends its journal; another is started where that one ends."""

    def __init__(self, uri: str, journal: Path) -> None:
        self.run_id: str | None = None
        self.rows = 0
        self.trouble = ""  # the last of them, until rows arrive again
        self._uri, self._journal = uri, journal
        self._process: SenderProcess | None = None
        self._next_start = 0.0
        self._may_exist = False

    def open(self, may_exist: bool) -> None:
        """Begin to send; ``may_exist``: parts may have been sent before."""
        self._may_exist, self._next_start = may_exist, time.monotonic() + RESTART_SECONDS
        opening = {"uri": self._uri, "journal": str(self._journal), "run_id": self.run_id, "may_exist": may_exist}
        try:
            self._process = take(self._uri)
        except OSError as error:
            logger.warning("the process that sends metrics to MLflow cannot be started: %s", error)
            return
        self.rows = 0
        self._process.tell({"open": opening})

    def nudge(self) -> None:
        """Say that the journal has grown, and hear what happened meanwhile."""
        self._hear()
        if self._process is not None:
            self._process.tell({"more": True})
        elif time.monotonic() >= self._next_start:
            self.open(may_exist=True)

    def close(
        self, status: str, seconds: float, start_seconds: float, should_hurry: Callable[[], bool] = lambda: False
    ) -> bool:
        """Whether everything arrived, the run's status too, within that time; ends the sending.

        Args:
            start_seconds: to wait at most for the process to be ready, where it was started only just now.
            should_hurry: asked again and again whether to wait no longer.
        """
        self._hear()
        if self._process is None:
            self.open(may_exist=True)
        process, self._process = self._process, None
        if process is None:
            return False
        process.tell({"close": status})
        was_ready, deadline = process.is_ready, time.monotonic() + (seconds if process.is_ready else start_seconds)
        while process.is_alive and (left := deadline - time.monotonic()) > 0 and not should_hurry():
            for message in process.hear(min(left, LOOK_SECONDS)):
                self._take(message)
                if "closed" in message:
                    give_back(process)
                    return bool(message["closed"])
            if process.is_ready and not was_ready:
                was_ready, deadline = True, min(deadline, time.monotonic() + seconds)
        process.stop(at_once=True)
        return False

    def _hear(self) -> None:
        process = self._process
        if process is None:
            return
        for message in process.hear():
            self._take(message)
        if not process.is_alive:
            logger.warning("the process that sends metrics to MLflow has ended; another one will be started")
            process.stop(at_once=True)
            self._process = None

    def _take(self, message: Mapping[str, Any]) -> None:
        self.run_id = message.get("run_id", self.run_id)
        self.rows = message.get("rows", self.rows)
        self.trouble = "" if "rows" in message else message.get("trouble", self.trouble)
        if "warning" in message:
            logger.warning("%s", message["warning"])
        if "trouble" in message:
            words = "MLflow at %s fails; training goes on, metrics are kept for it (%s)"
            logger.warning(words, self._uri, message["trouble"])
