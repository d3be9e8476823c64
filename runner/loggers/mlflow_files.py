"""Files and texts of a run that go to MLflow as artifacts: each under one name, so that it is there once."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.loggers.files import open_regular

logger = logging.getLogger(__name__)

MAX_TRIES = 3
MAX_NAME_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 2**20
_PART = re.compile(r"[A-Za-z0-9_ =-][A-Za-z0-9_. =-]*")


class Artifacts:
    """Those that wait to be sent. ``folder``: the run's, out of which none is taken, whatever a journal says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._waiting: dict[str, str | None] = {}
        self._tries: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take what ``{"artifact": name, "text": ...}`` says; without a text, ``name`` is that of a file."""
        name, text = line.get("artifact"), line.get("text")
        is_text = text is None or (isinstance(text, str) and len(text) <= MAX_TEXT_CHARACTERS)
        if not (isinstance(name, str) and is_name(name) and is_text):
            logger.warning("%s has an artifact that is none; it is left out", self._folder)
            return
        self._waiting[name] = text

    def send(self, client: Any, run_id: str) -> None:
        """Send what waits; an error where the server fails. One that it does not want is given up after some tries."""
        if self._waiting:
            client.get_run(run_id)  # where even this fails, it is not about the artifacts
        for name in list(self._waiting):
            try:
                self._send_one(client, run_id, name, self._waiting[name])
            except Exception as error:
                self._tries[name] = self._tries.get(name, 0) + 1
                if self._tries[name] < MAX_TRIES:
                    raise
                logger.warning("MLflow does not take %s: %s", name, (str(error).splitlines() or [""])[0][:200])
            del self._waiting[name]

    def _send_one(self, client: Any, run_id: str, name: str, text: str | None) -> None:
        if text is not None:
            client.log_text(run_id, text, name)
            return
        path = self._folder / name
        try:
            os.close(open_regular(path, os.O_RDONLY))
        except OSError as error:
            logger.warning("%s cannot be sent to MLflow: %s", path, error.strerror or error)
            return
        if path.resolve() != path:  # by way of a link it would be a file from elsewhere
            logger.warning("%s is not sent to MLflow: it is not in the run's folder", path)
            return
        client.log_artifact(run_id, str(path), name.rpartition("/")[0] or None)


def is_name(name: str) -> bool:
    """Whether it is a relative path of plain names, none of which begins with a dot."""
    return len(name) <= MAX_NAME_CHARACTERS and all(_PART.fullmatch(part) for part in name.split("/"))
