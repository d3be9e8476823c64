"""Sends a journal to MLflow: in a process of its own, so that training shares neither time nor memory with it."""

import json
import logging
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.loggers.journal import Line, Row, read_lines
from runner.loggers.mlflow_client import GONE, Connection, Target, first_line, is_run_id, prepare
from runner.loggers.mlflow_files import Artifacts

SEND_SECONDS = 5.0
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
RETRY_AT_CLOSE_SECONDS = 0.5
COMPLAIN_SECONDS = 600.0
LOOK_FOR_PARENT_SECONDS = 1.0
ROWS_AT_ONCE = 1000
NICENESS = 5
STATUSES = {"done": "FINISHED", "crashed": "FAILED", "preempted": "KILLED"}

Message = dict[str, Any]
Tell = Callable[[Message], None]


@dataclass(frozen=True)
class Opening:
    """Which journal goes to which run.

    Args:
        may_exist: parts of it may have been sent before.
        tags: what is known of the run, and holds against what the journal says.
    """

    journal: str
    uri: str
    run_id: str | None = None
    may_exist: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Sender:
    """Follows one journal; ``tell`` hears the run's id, how many rows the server has, and what is wrong."""

    opening: Opening
    tell: Tell
    run_id: str | None = None
    is_failing: bool = False
    rows: int = 0
    _place: int = 0
    _was_tried: bool = False
    _connection: Connection | None = None
    _parameters: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._artifacts = Artifacts(Path(self.opening.journal).parent)
        self.run_id = self.opening.run_id if is_run_id(self.opening.run_id) else None

    def send_all(self) -> None:
        """Send what the journal has beyond what was sent; raises whatever goes wrong, and the next call goes on."""
        rows: list[Row] = []
        for line, end in self._lines(self._place):
            if isinstance(line, Row):
                rows.append(line)
                if len(rows) < ROWS_AT_ONCE:
                    continue
            self._send(rows, end)
            if isinstance(line, dict):
                self._parameters = self._parameters | _texts(line.get("parameters"))
                if "artifact" in line:
                    self._artifacts.add(line)
        if rows:
            self._send(rows, end)
        if self._place:
            self._introduce()

    def finish(self, status: str) -> None:
        """Set the run's status, once the server has everything that it said it took."""
        if self._connect().lacks_values():
            self._begin_anew()
            self.send_all()
            if self._connect().lacks_values():
                raise ValueError("the server does not have what it said it took")
        self._connect().finish(status)

    def recover(self, error: Exception) -> None:
        """Before the next try: a server that has forgotten the run gets all of it again."""
        if getattr(error, "error_code", None) == GONE:
            self._connection = self.run_id = None
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._place = self.rows = 0

    def _send(self, rows: list[Row], end: int) -> None:
        """Send ``rows``, which end at ``end``, and leave the list empty."""
        if rows:
            self._introduce()
            self._connect().send(rows)
            self.rows += len(rows)
            self.tell({"rows": self.rows})
            rows.clear()
        self._place = end

    def _introduce(self) -> None:
        connection = self._connect()
        if self._parameters:
            connection.send_parameters(self._parameters)
            self._parameters = {}
        if self._artifacts:
            connection.send_artifacts(self._artifacts)

    def _connect(self) -> Connection:
        if self._connection is None:
            may_exist, self._was_tried = self.opening.may_exist or self._was_tried, True
            self._connection = Connection(self._target(), self.run_id, may_exist, self._timestamps)
            self.run_id = self._connection.run_id
            self.tell({"run_id": self.run_id})
        return self._connection

    def _target(self) -> Target:
        """Which run it is: as the last process that went on with it wrote."""
        named = [line["run"] for line, _ in self._lines() if isinstance(line, dict) and "run" in line]
        if not named or not isinstance(named[-1], dict):
            raise ValueError(f"{self.opening.journal} does not say of which run it is")
        experiment, name = str(named[-1].get("experiment")), str(named[-1].get("name"))
        return Target(self.opening.uri, experiment, name, {**_texts(named[-1].get("tags")), **self.opening.tags})

    def _timestamps(self) -> set[int]:
        known: set[int] = set()
        for line, _ in self._lines():
            known.update([line.timestamp_ms] if isinstance(line, Row) else _counts(line.get("known")))
        return known

    def _lines(self, offset: int = 0) -> Iterator[tuple[Line, int]]:
        return read_lines(Path(self.opening.journal), offset)


class Service:
    """Does what it is told until ``inbox`` has ``None``: one journal after the other.

    ``{"open": ...}`` begins one, ``{"more": true}`` says that it has grown, ``{"close": status}`` ends it.
    """

    def __init__(self, inbox: "queue.SimpleQueue[Message | None]", tell: Tell) -> None:
        self._inbox, self._tell = inbox, tell
        self._next_send = self._next_complaint = 0.0

    def run(self) -> None:
        while (message := self._inbox.get()) is not None:
            if "open" in message:
                self._follow(Sender(Opening(**message["open"]), self._tell))

    def _follow(self, sender: Sender) -> None:
        status: str | None = None
        delay_seconds, is_hopeless = RETRY_SECONDS, False
        self._next_send = self._next_complaint = 0.0
        while True:
            error = self._try(sender, status)
            if status is not None and (error is None or is_hopeless):
                return self._tell({"closed": error is None})
            due = None
            if error is not None:
                due = time.monotonic() + (delay_seconds if status is None else RETRY_AT_CLOSE_SECONDS)
            delay_seconds = RETRY_SECONDS if error is None else min(2 * delay_seconds, LONGEST_RETRY_SECONDS)
            ended = self._wait(due)
            if ended is not None:
                status, is_hopeless = ended, error is not None

    def _try(self, sender: Sender, status: str | None) -> Exception | None:
        """Send what there is, and the status where the run has ended; of failures one is reported now and then."""
        rows = sender.rows
        try:
            sender.send_all()
            if status is not None:
                sender.finish(status)
        except Exception as error:  # whatever it is, the next try may do better
            if time.monotonic() >= self._next_complaint:
                self._next_complaint = time.monotonic() + COMPLAIN_SECONDS
                self._tell({"trouble": first_line(error)})
            sender.is_failing = True
            sender.recover(error)
            return error
        sender.is_failing = False
        if sender.rows > rows:
            self._next_send = time.monotonic() + SEND_SECONDS
        return None

    def _wait(self, due: float | None) -> str | None:
        """Until the next try is due; with no time given, until the journal has grown and the last batch is old enough.

        Returns the run's status if it has ended meanwhile.
        """
        while True:
            try:
                message = self._inbox.get(timeout=None if due is None else max(due - time.monotonic(), 0.0))
            except queue.Empty:
                return None
            if message is None:
                raise SystemExit
            if "close" in message:
                return str(message["close"])
            if due is None:
                due = self._next_send


class _Forward(logging.Handler):
    """Hands warnings to the process that trains."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("runner."):
            self._tell({"warning": record.getMessage()})


def main() -> None:
    """The process: messages come in by the standard input, one JSON object a line; it ends with that, or its parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which says when to close
    os.nice(NICENESS)
    tell = _claim_output()
    logging.getLogger().addHandler(_Forward(tell))
    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(inbox, os.getppid()), daemon=True).start()
    try:
        prepare(with_database="database" in sys.argv)
    except Exception as error:
        tell({"trouble": f"MLflow cannot be imported: {first_line(error)}"})
    tell({"ready": True})
    Service(inbox, tell).run()


def _claim_output() -> Tell:
    """The standard output for our messages alone; MLflow prints there as well."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

    def tell(message: Message) -> None:
        output.write(json.dumps(message) + "\n")

    return tell


def _listen(inbox: "queue.SimpleQueue[Message | None]", parent: int) -> None:
    """Pass messages on, and end the process at once when nobody is left who sends any."""
    rest = b""
    while os.getppid() == parent:
        if select.select([0], [], [], LOOK_FOR_PARENT_SECONDS)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                inbox.put(json.loads(line))
    os._exit(0)


def _counts(known: Any) -> list[int]:
    return [count for count in known if type(count) is int] if isinstance(known, list) else []


def _texts(mapping: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in mapping.items()} if isinstance(mapping, dict) else {}


if __name__ == "__main__":
    main()
