"""What a run may touch: watched in its process, and in those it starts, by a hook that Python itself installs."""

import json
import os
from pathlib import Path
from typing import Any

from tests.campaign.hostile_watch import NEVER, ROOT, Known, Watch

SETTINGS = "HOOKLINE_FENCE"
CACHES = "__pycache__"
"""Where Python keeps modules that it has compiled, beside them."""


class Fence(Watch):
    """Notes in a file, at once, whatever a process writes elsewhere, connects to, listens on or starts."""

    def __init__(self, writable: list[str], addresses: list[tuple[str, int]], report: str) -> None:
        super().__init__([Path(path) for path in writable], Known(), addresses=addresses)
        self._report = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for event in ("import", "exec", "compile", "socket.__new__"):
            del self._judges[event]
        self._judges["socket.bind"] = self._bind
        self._never_right = tuple(
            name for name in NEVER if not name.startswith(("ctypes", "marshal", "pickle", "code"))
        )

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in self._judges or event.startswith(self._never_right):
            super()._hear(event, args)
        while self.seen:
            os.write(self._report, f"{os.getpid()}: {self.seen.pop()}\n".encode(errors="replace"))

    def _is_writable(self, event: str, path: Any, folder: int | None) -> bool:
        return super()._is_writable(event, path, folder) or CACHES in Path(os.fsdecode(path)).parts

    def _bind(self, args: tuple[Any, ...]) -> str | None:
        """``urllib3`` binds a socket, and closes it, to know whether there is IPv6."""
        return None if args[1][:2] == ("::1", 0) else repr(args[1])


def fence_in(folder: Path, writable: list[Path], report: Path, addresses: list[tuple[str, int]]) -> dict[str, str]:
    """Environment variables with which every Python process puts itself behind a fence; ``folder`` is for a module."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import tests.campaign.hostile_fence as fence\nfence.put_up()\n")
    settings = {"writable": list(map(str, writable)), "addresses": addresses, "report": str(report)}
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), SETTINGS: json.dumps(settings)}


def put_up() -> None:
    """Fence this process in, as the environment says; the first line of the report is that it was done."""
    settings = json.loads(os.environ[SETTINGS])
    addresses = [(host, port) for host, port in settings["addresses"]]
    with open(settings["report"], "a") as file:
        file.write(f"{os.getpid()}: fenced in\n")
    Fence(settings["writable"], addresses, settings["report"]).install()
