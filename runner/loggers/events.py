"""TensorBoard's files of events: one for each time that a run is begun or gone on with, cut where a checkpoint was."""

import io
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.loggers.files import make_durable, open_regular, write_at
from runner.spec import StateDict

_OURS = re.compile(r"events\.out\.tfevents\.(\d{10,})\.(\d{4,})\.[\w.-]*\.hookline")


class EventFiles:
    """The files of one run in ``folder``; all but the newest are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes: dict[str, int] = {}
        self._name: str | None = None
        self._purge_step: int | None = None

    def write(self, events: Iterable[Any]) -> None:
        """Add events to this session's file; ``OSError`` where that fails, and then none of them counts."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        data = io.BytesIO()
        writer = RecordWriter(data)
        name, first = self._name, []
        if name is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name, first = self._next_name(), [Event(wall_time=time.time(), file_version="brain.Event:2")]
            first += self._marks()
        for event in (*first, *events):
            writer.write(event.SerializeToString())
        size = write_at(self.folder / name, data.getvalue(), self._sizes.get(name, 0))
        self._name, self._sizes[name] = name, size

    def _marks(self) -> list[Any]:
        """Tells a TensorBoard that has already read what was cut away to forget it."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        if self._purge_step is None:
            return []
        return [
            Event(wall_time=time.time(), step=self._purge_step, session_log=SessionLog(status=SessionLog.START)),
        ]

    def _next_name(self) -> str:
        """Files are read in the order of their names: the time may not go back, nor stand still."""
        found = [match for path in self.folder.iterdir() if (match := _OURS.fullmatch(path.name))]
        last = max((int(match[1]) for match in found), default=0)
        return f"events.out.tfevents.{max(int(time.time()), last + 1):010d}.{len(found):04d}.{_host()}.hookline"

    def push(self) -> None:
        """Push this session's file to the disk."""
        if self._name is not None:
            make_durable(self.folder / self._name)

    def state_dict(self) -> StateDict:
        return {"files": dict(self._sizes)}

    def load_state_dict(self, state: StateDict, last_step: int) -> list[str]:
        """Cut the files back to what they were after ``last_step``, and remove later ones; returns what is wrong."""
        self._name, self._sizes, problems = None, {}, []
        known = {name: int(size) for name, size in state.get("files", {}).items() if _OURS.fullmatch(name)}
        self._purge_step = last_step + 1
        there = sorted(path.name for path in self.folder.glob("events.*") if _OURS.fullmatch(path.name))
        for name in there:
            try:
                if name in known:
                    self._sizes[name] = _cut(self.folder / name, known[name])
                else:
                    os.unlink(self.folder / name)
            except OSError as error:
                problems.append(f"{self.folder / name}: {error.strerror or error}")
        problems += [f"{self.folder / name} is gone" for name in known if name not in there]
        return problems


def _cut(path: Path, size: int) -> int:
    descriptor = open_regular(path, os.O_WRONLY)
    try:
        found = os.fstat(descriptor)
        if found.st_nlink > 1:  # cutting it would cut a file elsewhere
            raise OSError("it has another name elsewhere")
        if found.st_size < size:
            raise OSError(f"it has {found.st_size} of the {size} bytes it should have")
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
    return size


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname(), flags=re.ASCII)[:60] or "host"
