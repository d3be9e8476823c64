"""Metric rows, videos, histograms and parameters for Weights & Biases."""

import json
import logging
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.extras import need
from runner.loggers.base import Histogram, Logger, run_name
from runner.loggers.journal import Journal, Row
from runner.loggers.wandb_sender import STORE, Opening, SenderThread
from runner.spec import CLOCKS, Deferred, StateDict

logger = logging.getLogger(__name__)

JOURNAL = "wandb-rows.jsonl"
WRITE_SECONDS = 2.0
CLOSE_SECONDS = 20.0
PREEMPTED_SECONDS = 3.0
IS_ID = re.compile(r"[a-z0-9]{6,64}")


class WandbLogger(Logger):
    """Shows a run in W&B; a thread talks to it, so that training neither waits for it nor fails with it.

    Rows are kept in the folder as well, as W&B's own files lack the last ones of a run that is killed: one that is
    gone on with has the same id, and W&B gets each row once, from the first on where it was offline.

    Args:
        project: ``<algo>-<env>`` of the run, or ``hookline``, where not given.
        offline: write files that ``wandb sync`` sends; what cannot be reached when it is not, is written so as well.
    """

    def __init__(
        self,
        exp_name: str | None = None,
        log_dir: str | Path | None = None,
        run: Any = None,
        project: str | None = None,
        entity: str | None = None,
        offline: bool = True,
    ) -> None:
        need("wandb", "wandb", "logger=wandb")
        super().__init__(exp_name, log_dir, run)
        self.id = str(getattr(run, "record", {}).get("id") or secrets.token_hex(8))
        self._project, self._entity, self._offline = project or _project_of(run), entity, offline
        self._journal = Journal(self.folder / JOURNAL)
        self._sender: SenderThread | None = None
        self._rows, self._next_write = 0, 0.0
        self._is_resumed = self._has_all = self._is_closed = False

    def take_row(self, row: Mapping[str, float]) -> None:
        try:
            values = {name: float(value) for name, value in row.items() if name not in CLOCKS}
            self._add(Row(self._rows, max(self.last_step, 0), int(time.time() * 1000), values))
            self._rows += 1
        except (TypeError, ValueError) as error:
            self.warn_once("a row of metrics is not sent to W&B: %s", error)
        if time.monotonic() >= self._next_write:
            self.flush()

    def show_video(self, name: str, path: Path, step: int, fps: float) -> None:
        self._add({"video": name, "file": str(path.absolute()), "step": step})

    def show_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        self._add({"histogram": name, "step": step, **asdict(histogram)})

    def show_hparams(self, parameters: Mapping[str, Any]) -> None:
        self._add({"parameters": json.loads(json.dumps(parameters, default=str))})
        self.flush()

    def _add(self, line: Row | dict[str, Any]) -> None:
        self._begin()
        try:
            self._journal.add(line)
        except OverflowError as error:
            self.warn_once("rows of metrics are not sent to W&B: %s", error)

    def _begin(self) -> None:
        if self._sender is not None or self._is_closed:
            return
        if not self._is_resumed:
            try:
                self._journal.clear()  # of an earlier run in this folder
            except OSError as error:
                self.warn_once("%s cannot be removed: %s", self._journal.path, error)
        names = (self.id, self._project, self._entity, run_name(self.folder))
        self._sender = SenderThread(Opening(self._journal.path, *names, self._offline, self._has_all))

    def flush(self) -> None:
        """Hand what was logged to the thread; does not wait for it."""
        self._next_write = time.monotonic() + WRITE_SECONDS
        if self._sender is None:
            return
        try:
            self._journal.write()
        except OSError as error:
            self.warn_once("%s cannot be written (%s); rows are kept in memory", self._journal.path, error)
        self._sender.nudge()

    def close(self, status: str = "done") -> None:
        """Let what waits be sent for some seconds."""
        if self._is_closed or self._sender is None:
            return
        self.flush()
        self._is_closed = True
        seconds = PREEMPTED_SECONDS if status == "preempted" else CLOSE_SECONDS
        if not self._sender.close(0 if status == "done" else 1, seconds):
            words = "W&B did not take everything of this run in %g s; going on with the run sends it again, from %s"
            self.warn_once(words, seconds, self._journal.path)

    def look(self) -> str:
        """What to type, or to open, to look at the run."""
        if self._sender is not None and self._sender.url:
            return self._sender.url
        beside = Path(sys.executable).with_name("wandb")
        program = "wandb" if shutil.which("wandb") or not beside.exists() else shlex.quote(str(beside))
        return f"{program} sync {shlex.quote(str(self.folder / STORE))}/offline-run-*-{self.id}"

    def state_dict(self) -> StateDict:
        if not self._is_closed:
            self.flush()
        return {"id": self.id, "rows": self._rows, "step": self.last_step, "push": Deferred(self._journal.push)}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on with the run of ``state``; only before anything is logged."""
        self._is_resumed = True
        self._rows, self.last_step = int(state.get("rows", 0)), int(state.get("step", -1))
        if isinstance(state.get("id"), str) and IS_ID.fullmatch(state["id"]):
            self.id = state["id"]
        try:
            self._journal.cut(below=self._rows)
            reason = f"{self._journal.path} has {self._journal.rows} of {self._rows} rows"
        except OSError as error:
            reason = str(error)
        self._has_all = self._journal.rows == self._rows
        if not self._has_all:
            words = "%s: W&B's own files of before are kept, where rows may be missing, or be there twice"
            logger.warning(words, reason)


def _project_of(run: Any) -> str:
    words = [str(word) for word in (getattr(run, "algo", None), getattr(run, "env", None)) if word]
    return re.sub(r"[^\w.-]", "_", "-".join(words), flags=re.ASCII)[:100] or "hookline"
