"""Reads a journal and tells W&B: in a thread, since importing it, a new run and the network all take their time."""

import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.loggers.journal import Row, read_lines
from runner.text import legible

logger = logging.getLogger(__name__)

STORE = "wandb"
INIT_SECONDS = 30.0


@dataclass(frozen=True)
class Opening:
    """Which journal goes to which run of which project.

    Args:
        has_all: whether the journal has all that W&B's files of this run from before have, which then go.
    """

    journal: Path
    id: str
    project: str
    entity: str | None
    name: str
    offline: bool
    has_all: bool = False


class SenderThread:
    """Sends what the journal has, each time that it is told that there is more; ``url`` of a run that is online."""

    def __init__(self, opening: Opening) -> None:
        self.url: str | None = None
        self._opening, self._place = opening, 0
        self._run: Any = None
        self._exit_code: int | None = None
        self._more = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb-sender", daemon=True)
        self._thread.start()

    def nudge(self) -> None:
        """The journal has grown."""
        self._more.set()

    def close(self, exit_code: int, seconds: float) -> bool:
        """Whether everything was taken within that time, or why it was not has been said."""
        self._exit_code = exit_code
        self._more.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._run = self._begin()
            while True:
                self._more.wait()
                self._more.clear()
                is_last = self._exit_code is not None
                self._send()
                if is_last:
                    break
            self._run.finish(exit_code=self._exit_code)
        except Exception as error:  # whatever it is: training goes on
            words = "W&B fails, this run is not shown there: %s; its rows are in %s"
            logger.warning(words, first_line(error), self._opening.journal)

    def _begin(self) -> Any:
        """An online run knows how far it got; one that is offline begins anew, and the files of before go."""
        if self._opening.offline:
            return self._begin_as("offline")
        try:
            return self._begin_as("online")
        except Exception as error:
            words = "W&B cannot be reached (%s): this run is written to be sent later, by wandb sync"
            logger.warning(words, first_line(error))
            return self._begin_as("offline")

    def _begin_as(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        store, opening = self._opening.journal.parent, self._opening
        if opening.has_all:
            remove_earlier(store / STORE, opening.id)
        settings = wandb.Settings(
            mode=mode,
            silent=True,
            console="off",
            symlink=False,  # to what is gone once the run is gone on with
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            init_timeout=INIT_SECONDS,
            login_timeout=INIT_SECONDS,
            x_disable_stats=True,
        )
        before = dict(os.environ)
        try:
            run = wandb.init(
                project=opening.project,
                entity=opening.entity,
                id=opening.id,
                name=opening.name,
                dir=str(store),
                resume="allow",
                reinit="create_new",
                settings=settings,
            )
        finally:
            for name in [name for name in os.environ.keys() - before.keys() if name.startswith("WANDB_")]:
                del os.environ[name]  # the address of W&B's own process, which is nobody else's business
        self.url = run.url if mode == "online" else None
        return run

    def _send(self) -> None:
        for line, end in read_lines(self._opening.journal, self._place):
            if isinstance(line, Row):
                self._log(line.values | {"_timestamp": line.timestamp_ms / 1000}, line.step)
            elif "parameters" in line:
                self._run.config.update(line["parameters"], allow_val_change=True)
            elif "video" in line or "histogram" in line:
                self._show(line)
            self._place = end

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if step >= self._run.starting_step:  # an online run has those before it
            self._run.log(dict(values), step=step)

    def _show(self, line: Mapping[str, Any]) -> None:
        import wandb

        try:
            if "video" in line:
                path = Path(line["file"])
                if path.suffix != ".mp4" or not path.resolve().is_relative_to(self._opening.journal.parent.resolve()):
                    raise ValueError(f"{path} is no video of this run")
                media: Any = wandb.Video(str(path), format="mp4")
                name = str(line["video"])
            else:
                media = wandb.Histogram(np_histogram=(line["counts"], line["edges"]))
                name = str(line["histogram"])
            self._log({name: media}, int(line["step"]))
        except Exception as error:  # one picture is not worth all rows
            logger.warning("W&B does not take a line of %s: %s", self._opening.journal, first_line(error))


def remove_earlier(store: Path, id: str) -> None:
    """Remove W&B's files of a run, and its settings, which might name another server."""
    if store.is_symlink():
        store.unlink()
    for path in (*store.glob(f"*run-*-{id}"), store / "settings"):
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    return legible((str(error).splitlines() or [type(error).__name__])[0], most=200)
