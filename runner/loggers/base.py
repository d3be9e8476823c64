"""What every logger can do, in a run or by itself."""

import json
import logging
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.spec import StateDict, place_of
from runner.text import file_name
from runner.video import FPS, VIDEOS, write_mp4

log = logging.getLogger(__name__)

LOG_DIR = "logs"
BINS = 64


@dataclass(frozen=True)
class Histogram:
    """How many of some numbers lie between two ``edges``; the upper one belongs to the last bin alone."""

    counts: list[int]
    edges: list[float]
    total: float
    total_of_squares: float

    @classmethod
    def of(cls, data: Any, bins: int | Sequence[float] = BINS) -> "Histogram":
        """Of any tensor or array; what is not finite is left out."""
        values = np.asarray(data.detach().cpu() if hasattr(data, "detach") else data, np.float64).ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            raise ValueError("a histogram needs at least one finite number")
        counts, edges = np.histogram(values, bins=bins)
        return cls(counts.tolist(), edges.tolist(), float(values.sum()), float(np.square(values).sum()))


class Logger(ABC):
    """Takes the rows of a run's one metric stream; or, by itself, single values, videos and histograms.

    Nothing that a disk, a server or a library does to it stops a run: it warns once. Steps are env frames; where none
    is given, it is the one after the last.

    Args:
        exp_name, log_dir: its folder is ``<log_dir>/<exp_name>``.
        run: in place of both: a run's folder, or anything with such a ``path``.
    """

    folder: Path

    def __init__(self, exp_name: str | None = None, log_dir: str | Path | None = None, run: Any = None) -> None:
        if run is None and not exp_name:
            raise ValueError(f"{type(self).__name__} needs exp_name, the name of its folder in log_dir")
        own = Path(log_dir or LOG_DIR) / str(exp_name)
        self.folder = own if run is None else Path(getattr(run, "path", run))
        self.exp_name, self.log_dir = self.folder.name, self.folder.parent
        self.is_alone = run is None
        self.last_step = -1
        self._has_warned = False
        if self.is_alone:
            self.folder.mkdir(parents=True, exist_ok=True)

    def log_row(self, row: Mapping[str, float]) -> None:
        """Take one row: metric names to numbers; the keys of ``spec.CLOCKS`` in it are its place on the axes."""
        with suppress(TypeError, ValueError, OverflowError):  # what is no number is told of where the row goes
            axis = "frames" if "frames" in row else "env_steps"
            self.last_step = int(place_of(row, axis)) if axis in row else self.last_step
        self.take_row(row)

    @abstractmethod
    def take_row(self, row: Mapping[str, float]) -> None: ...

    def log_scalar(self, name: str, value: Any, step: int | None = None) -> None:
        """Log one number, or a tensor with one element."""
        self.log_scalars({name: value}, step)

    def log_scalars(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log several numbers at one step: one row."""
        row = {name: _number(name, value) for name, value in values.items()}
        self.log_row({"frames": self.place(step), **row})

    def log_video(self, name: str, video: Any, step: int | None = None, fps: float | None = None) -> None:
        """Log a video: the path of an mp4, or ``[T, C, H, W]``, or ``[N, T, C, H, W]`` (a grid), of bytes."""
        at = self.place(step)
        if not isinstance(video, str | os.PathLike):
            path = self.folder / VIDEOS / f"{file_name(name)}-{at}.mp4"
            try:
                video = write_mp4(path, video, fps)
            except OSError as error:
                return self._tell_of("log_video", error)
        self._try("log_video", lambda: self.show_video(name, Path(video), at, fps or FPS))

    def log_histogram(self, name: str, data: Any, step: int | None = None, bins: int | Sequence[float] = BINS) -> None:
        """Log how the numbers of a tensor are distributed."""
        histogram, at = Histogram.of(data, bins), self.place(step)
        self._try("log_histogram", lambda: self.show_histogram(name, histogram, at))

    def log_hparams(self, parameters: Any) -> None:
        """Log a mapping, nested or not, or a dataclass."""
        own = as_mapping(parameters)
        self._try("log_hparams", lambda: self.show_hparams(own))

    def _try(self, method: str, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:  # whatever a disk, a server or a library does: nobody's run depends on it
            self._tell_of(method, error)

    def _tell_of(self, method: str, error: Exception) -> None:
        words = "%s fails at %s; what it was given is lost: %s: %s"
        self.warn_once(words, type(self).__name__, method, type(error).__name__, error)

    def place(self, step: int | None) -> int:
        """The step that is meant."""
        self.last_step = self.last_step + 1 if step is None else int(step)
        return self.last_step

    def show_video(self, name: str, path: Path, step: int, fps: float) -> None:  # noqa: B027 (the file is enough)
        """Do what there is to do about an mp4 beyond its being there."""

    @abstractmethod
    def show_histogram(self, name: str, histogram: Histogram, step: int) -> None: ...

    @abstractmethod
    def show_hparams(self, parameters: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def flush(self) -> None:
        """Hand on what was logged."""

    @abstractmethod
    def close(self, status: str = "done") -> None:
        """The end: ``done``, ``crashed`` or ``preempted``."""

    @abstractmethod
    def state_dict(self) -> StateDict: ...

    @abstractmethod
    def load_state_dict(self, state: StateDict) -> None: ...

    def warn_once(self, words: str, *values: Any) -> None:
        """Say it, unless something was said before."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(words, *values)


def generate_exp_name(model_name: str, experiment_name: str) -> str:
    """A name that no other experiment has: both names, the time, and eight random digits."""
    words = [word for word in (model_name, experiment_name) if word]
    return "_".join([*words, time.strftime("%Y-%m-%d_%H-%M-%S"), secrets.token_hex(4)])


def run_name(folder: Path) -> str:
    """The folder's name; of a sweep's job, whose own says little, with the sweep's before it."""
    is_job = folder.parent.name.endswith("-sweep")
    return f"{folder.parent.name}/{folder.name}" if is_job else folder.name


def as_mapping(parameters: Any) -> Mapping[str, Any]:
    """Of a dataclass, an object with attributes, or a mapping: a mapping."""
    if is_dataclass(parameters) and not isinstance(parameters, type):
        return asdict(parameters)
    if isinstance(parameters, Mapping):
        return parameters
    if hasattr(parameters, "__dict__"):
        return vars(parameters)
    raise ValueError(f"parameters are a mapping or a dataclass; a {type(parameters).__name__} is given")


def flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; numbers, truth values and texts stay what they are, all else becomes its JSON."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            is_plain = isinstance(value, str | int | float)
            flat[f"{prefix}{key}"] = value if is_plain else json.dumps(value, default=str)
    return flat


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: a scalar is one number; a {type(value).__name__} is given") from None
