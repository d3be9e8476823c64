"""Pictures in, mp4 files out that a browser plays, frame by frame and with bounded memory; and back."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from runner.extras import need

FPS = 30.0
VIDEOS = "videos"
"""The folder of a run that has them."""
KEY_EVERY_SECONDS = 2.0
GIF_FRAMES = 150
GIF_WIDTH = 320
_CHANNELS = (1, 3)


class Mp4Writer:
    """Writes h264 (yuv420p) as frames come; the file gets its name when it is complete, and is never half there.

    Args:
        path: where a file of that name is replaced.
        fps: frames that are shown in a second.
    """

    def __init__(self, path: Path, fps: float = FPS) -> None:
        need("av", "video", "a video")
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps}: a video shows more than 0 frames a second")
        self.path, self.fps, self.frames = Path(path), fps, 0
        self._unfinished = self.path.with_name(f".{self.path.name}.part")
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] = ()

    def add(self, picture: Any) -> None:
        """Add one picture: ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` of bytes, ``C`` 1 or 3; all of one size."""
        import av

        image = as_picture(picture)
        if self._container is None:
            self._open(image.shape)
        if image.shape != self._shape:
            raise ValueError(f"all pictures of a video have one size: {self._shape} was first, {image.shape} came")
        frame = av.VideoFrame.from_ndarray(_even(image), format="rgb24")
        frame.pts, frame.time_base = self.frames, self._stream.codec_context.time_base
        self._mux(frame)
        self.frames += 1

    def _open(self, shape: tuple[int, ...]) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished.unlink(missing_ok=True)
        self._container = av.open(str(self._unfinished), "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(self.fps).limit_denominator(1000)
        options = {"preset": "veryfast", "crf": "23", "g": str(max(round(KEY_EVERY_SECONDS * self.fps), 1))}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.codec_context.time_base = 1 / rate
        self._stream.codec_context.thread_count = 1  # the run has one, too
        self._stream.height, self._stream.width = (size + size % 2 for size in shape[:2])
        self._stream.pix_fmt, self._shape = "yuv420p", shape

    def _mux(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> Path | None:
        """Complete the file and give it its name; ``None`` where there was no picture."""
        if self._container is None:
            return None
        self._mux(None)
        self._container.close()
        self._container = None
        with open(self._unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self._unfinished, self.path)
        return self.path

    def abandon(self) -> None:
        """Leave nothing behind."""
        if self._container is not None:
            with suppress(Exception):
                self._container.close()
            self._container = None
            self._unfinished.unlink(missing_ok=True)


def write_mp4(path: Path, video: Any, fps: float | None = None) -> Path:
    """Write a whole video, ``[T, C, H, W]`` or ``[N, T, C, H, W]`` (a grid of N) of bytes."""
    writer = Mp4Writer(path, fps or FPS)
    try:
        for picture in pictures_of(video):
            writer.add(picture)
        written = writer.close()
    except BaseException:
        writer.abandon()
        raise
    if written is None:
        raise ValueError("a video needs at least one picture")
    return written


def pictures_of(video: Any) -> Iterator[np.ndarray]:
    """The pictures ``[H, W, C]`` of ``[T, C, H, W]``, ``[T, H, W, C]``, or N of these, side by side."""
    frames = _array(video)
    if frames.ndim not in (4, 5):
        raise ValueError(f"a video is [T, C, H, W] or [N, T, C, H, W]; its shape is {list(frames.shape)}")
    if frames.ndim == 4:
        yield from map(as_picture, frames)
    else:
        yield from (grid(frames[:, t]) for t in range(frames.shape[1]))


def as_picture(picture: Any) -> np.ndarray:
    """``[H, W, 3]`` of bytes, from what has the channels first, last, or none."""
    image = _array(picture)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[-1] not in _CHANNELS and image.shape[0] in _CHANNELS:
        image = np.moveaxis(image, 0, -1)
    if image.ndim != 3 or image.shape[-1] not in _CHANNELS or image.dtype != np.uint8 or not image.size:
        words = f"its shape is {list(image.shape)}, its dtype {image.dtype}"
        raise ValueError(f"a picture is [H, W, C] or [C, H, W] of uint8 with 1 or 3 channels; {words}")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def grid(pictures: Any) -> np.ndarray:
    """``N`` pictures as one, row by row in a square as far as that goes; places left over are black."""
    images = [as_picture(picture) for picture in pictures]
    columns = math.ceil(math.sqrt(len(images)))
    images += [np.zeros_like(images[0])] * (-len(images) % columns)
    rows = [np.concatenate(images[at : at + columns], 1) for at in range(0, len(images), columns)]
    return np.concatenate(rows, 0)


def read_video(path: Path, every: int = 1) -> Iterator[np.ndarray]:
    """The pictures ``[H, W, 3]`` of a file, one by one: each ``every``-th."""
    import av

    with av.open(str(path)) as container:
        for frame in islice(container.decode(video=0), 0, None, every):
            yield frame.to_ndarray(format="rgb24")


def _length(path: Path) -> int:
    """How many pictures a file has: as it says, or as are counted where it does not."""
    import av

    with av.open(str(path)) as container:
        return container.streams.video[0].frames or sum(1 for _ in container.decode(video=0))


def gif_of(path: Path, fps: float) -> tuple[bytes, int, int]:
    """An animated GIF of a video, its height and its width: at most 150 pictures, at most 320 pixels wide."""
    from PIL import Image

    every = max(math.ceil(_length(path) / GIF_FRAMES), 1)
    shrunk = []
    for picture in read_video(path, every):
        image = Image.fromarray(picture)
        image.thumbnail((GIF_WIDTH, GIF_WIDTH))
        shrunk.append(image.quantize(64))
    file, milliseconds = BytesIO(), max(round(1000 * every / fps), 20)
    shrunk[0].save(file, "GIF", save_all=True, append_images=shrunk[1:], duration=milliseconds, loop=0)
    return file.getvalue(), shrunk[0].height, shrunk[0].width


def _even(image: np.ndarray) -> np.ndarray:
    """With a last row and column twice where their number is odd, which yuv420p does not have."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    return np.ascontiguousarray(image)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
