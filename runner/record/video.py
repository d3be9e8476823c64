"""Turns what environments show into videos, one picture after the other."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from runner.extras import need
from runner.spec import StateDict
from runner.text import file_name
from runner.types import PositiveFloat, PositiveInt
from runner.video import FPS, VIDEOS, Mp4Writer, as_picture, grid

log = logging.getLogger(__name__)

PIXELS = "pixels"


class VideoRecorder:
    """Writes an mp4 as pictures come, with bounded memory, and hands it to a logger when told that it is complete.

    Called with a TensorDict (or a mapping), it takes the pictures of ``in_keys`` and returns it as it is; several
    environments, ``[N, ...]``, are shown side by side.

    Args:
        logger: whose folder has the videos, and whose ``log_video`` gets them; ``None``: those of ``run``.
        tag: what the file is called, before its number.
        in_keys: a video for each; ``pixels`` where not given.
        skip: every how-manieth picture is kept: 2 where not given, 1 for several environments.
        max_frames: pictures of one video; later ones are left out.
        make_grid: false shows the first of several environments alone.
        fps: pictures a second when it is played.
        run: in place of a logger: a folder, or anything with such a ``path``.
    """

    def __init__(
        self,
        logger: Any = None,
        tag: str = "video",
        in_keys: Sequence[str] | None = None,
        skip: PositiveInt | None = None,
        max_frames: PositiveInt | None = None,
        make_grid: bool = True,
        fps: PositiveFloat | None = None,
        *,
        run: Any = None,
    ) -> None:
        need("av", "video", "a video")
        place = getattr(logger, "folder", None) or getattr(run, "path", run)
        if place is None:
            raise ValueError("VideoRecorder needs a logger, or run, a folder for its videos")
        self.folder = Path(place) / VIDEOS
        self.logger, self.tag, self.skip, self.fps = logger, tag, skip, fps
        self.in_keys, self.max_frames, self.make_grid = list(in_keys or [PIXELS]), max_frames, make_grid
        self.count = 0
        self._writers: dict[str, Mp4Writer] = {}
        self._seen: dict[str, int] = {}

    def __call__(self, data: Any) -> Any:
        """Add the pictures of one step."""
        found = {key: data[key] for key in self.in_keys} if _has_keys(data) else {self.in_keys[0]: data}
        for key, pictures in found.items():
            self.add(pictures, key)
        return data

    def add(self, pictures: Any, key: str | None = None) -> None:
        """Add ``[H, W, C]`` or ``[C, H, W]`` of bytes, or ``[N, ...]`` of these."""
        key = key or self.in_keys[0]
        shown = np.asarray(pictures.detach().cpu() if hasattr(pictures, "detach") else pictures)
        is_batch = shown.ndim == 4
        seen = self._seen.get(key, 0)
        self._seen[key] = seen + 1
        writer = self._writers.get(key)
        if seen % (self.skip or (1 if is_batch else 2)) or (
            writer is not None and self.max_frames is not None and writer.frames >= self.max_frames
        ):
            return
        if writer is None:
            writer = self._writers[key] = Mp4Writer(self.folder / f"{self._name(key)}-unnamed.mp4", self.fps or FPS)
        if is_batch:
            writer.add(grid(shown) if self.make_grid else as_picture(shown[0]))
        else:
            writer.add(shown)

    @property
    def frames(self) -> int:
        """Pictures of the video that is being written."""
        return max((writer.frames for writer in self._writers.values()), default=0)

    def dump(self, suffix: str | int | None = None) -> list[Path]:
        """Complete the video of each key, as ``<tag>-<suffix>.mp4``: a step, or a count where not given."""
        named = suffix if suffix is not None else self.count
        self.count += 1
        written = []
        for key, writer in self._writers.items():
            writer.path = self.folder / f"{self._name(key)}-{named}.mp4"
            path = writer.close()
            if path is not None:
                written.append(path)
                self._hand_over(key, path, named if isinstance(named, int) else None)
        self._forget()
        return written

    def _hand_over(self, key: str, path: Path, step: int | None) -> None:
        if self.logger is not None:
            self.logger.log_video(self._name(key), path, step, self.fps or FPS)

    def _name(self, key: str) -> str:
        return file_name(self.tag if len(self.in_keys) == 1 else f"{self.tag}_{key}")

    def abandon(self) -> None:
        """Give up what is being written."""
        for writer in self._writers.values():
            writer.abandon()
        self._forget()

    def _forget(self) -> None:
        self._writers, self._seen = {}, {}

    def written(self) -> list[Path]:
        """The complete videos of this tag, whoever recorded them."""
        return list(self.folder.glob(f"{file_name(self.tag)}[-_]*.mp4"))

    def remove_unfinished(self) -> None:
        """What a process that was killed left half written."""
        for path in self.folder.glob(f".{file_name(self.tag)}*.part"):
            with suppress(OSError):
                path.unlink()

    def state_dict(self) -> StateDict:
        return {"count": self.count}

    def load_state_dict(self, state: StateDict) -> None:
        self.count = int(state["count"])


def _has_keys(data: Any) -> bool:
    return isinstance(data, Mapping | TensorDictBase)
