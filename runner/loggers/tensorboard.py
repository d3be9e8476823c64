"""Metric rows, videos, histograms and parameters for TensorBoard."""

import logging
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.extras import need
from runner.loggers.base import Histogram, Logger, flatten
from runner.loggers.events import EventFiles
from runner.spec import CLOCKS, Deferred, StateDict
from runner.video import gif_of

logger = logging.getLogger(__name__)

WRITE_SECONDS = 2.0
MAX_PENDING = 100_000
SHOWN = ("eval/final_return_mean", "eval/return_mean", "train/return_mean")
"""Metrics that stand beside the parameters on the HParams page."""

Row = tuple[float, int, dict[str, float]]


class TensorboardLogger(Logger):
    """Writes files of events to ``tensorboard/`` in the run's folder, or by itself to its own folder.

    Each time a run is gone on with, what came after the checkpoint is cut off and another file begun: every row is
    there once. Videos are shown as GIFs, which is what TensorBoard can show.
    """

    def __init__(self, exp_name: str | None = None, log_dir: str | Path | None = None, run: Any = None) -> None:
        need("tensorboard", "tensorboard", "logger=tensorboard")
        super().__init__(exp_name, log_dir, run)
        self._files = EventFiles(self.folder if self.is_alone else self.folder / "tensorboard")
        self._pending: deque[Row | Any] = deque(maxlen=MAX_PENDING)
        self._next_write = 0.0
        self._names: set[str] = set()

    def take_row(self, row: Mapping[str, float]) -> None:
        values = {name: value for name, value in row.items() if name not in CLOCKS}
        self._pending.append((time.time(), self.last_step, values))
        if time.monotonic() >= self._next_write:
            self.flush()

    def show_video(self, name: str, path: Path, step: int, fps: float) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif, height, width = gif_of(path, fps)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._add(step, Summary.Value(tag=name, image=image))

    def show_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        found = HistogramProto(
            min=histogram.edges[0],
            max=histogram.edges[-1],
            num=sum(histogram.counts),
            sum=histogram.total,
            sum_squares=histogram.total_of_squares,
            bucket_limit=histogram.edges,
            bucket=[0, *histogram.counts],  # the first limit is where the first bin begins
        )
        self._add(step, Summary.Value(tag=name, histo=found))

    def show_hparams(self, parameters: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from torch.utils.tensorboard.summary import hparams

        shown = {name: value for name, value in flatten(parameters).items() if not name.endswith("_target_")}
        for summary in hparams(shown, dict.fromkeys(SHOWN, 0)):
            self._pending.append(Event(wall_time=time.time(), step=0, summary=summary))

    def _add(self, step: int, value: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._pending.append(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))

    def flush(self) -> None:
        """Write what was logged since the last time; where that fails it is kept, and one warning says why."""
        self._next_write = time.monotonic() + WRITE_SECONDS
        if not self._pending:
            return
        try:
            self._files.write([_event(one) if isinstance(one, tuple) else one for one in self._pending])
            self._pending.clear()
        except (OSError, TypeError, ValueError) as error:
            if not isinstance(error, OSError):
                self._pending.clear()  # it would fail for ever
            self.warn_once("%s: rows cannot be written (%s); training goes on", self._files.folder, error)

    def close(self, status: str = "done") -> None:
        self.flush()
        self._push()

    def look(self) -> str:
        """What to type to look at the run."""
        beside = Path(sys.executable).with_name("tensorboard")
        program = "tensorboard" if shutil.which("tensorboard") or not beside.exists() else shlex.quote(str(beside))
        return f"{program} --logdir {shlex.quote(str(self.folder))}"

    def state_dict(self) -> StateDict:
        """How much has been written, and what could not be."""
        self.flush()
        rows = [list(one) for one in self._pending if isinstance(one, tuple)]
        kept = {"unwritten": rows} if rows else {}
        return {**self._files.state_dict(), "step": self.last_step, "push": Deferred(self._push), **kept}

    def _push(self) -> None:
        try:
            self._files.push()
        except OSError as error:
            self.warn_once("%s cannot be pushed to the disk (%s); training goes on", self._files.folder, error)

    def load_state_dict(self, state: StateDict) -> None:
        """Go on where ``state`` was; only before anything is logged."""
        self.last_step = int(state.get("step", -1))
        self._pending.clear()
        self._pending.extend(
            (float(seconds), int(step), dict(row)) for seconds, step, row in state.get("unwritten", ())
        )
        for problem in self._files.load_state_dict(state, self.last_step):
            logger.warning("%s; TensorBoard does not show all of this run", problem)


def _event(row: Row) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    seconds, step, values = row
    found = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
    return Event(wall_time=seconds, step=step, summary=Summary(value=found))
