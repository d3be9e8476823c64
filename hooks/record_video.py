"""The hook that records videos of the policy as training goes on."""

import logging
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from runner.hook import Hook
from runner.seeding import Streams, env_seed, unchanged_globals
from runner.spec import Abandoned, ConfigError
from runner.types import Every, Factory, PositiveInt
from runner.video import FPS

log = logging.getLogger(__name__)

STREAM = "record_video"


class RecordVideo(Hook):
    """Plays greedy episodes on environments of their own, which training never notices, and writes them as an mp4.

    Each video has the next seed of a stream of its own; its file, ``videos/<tag>-<frames>.mp4``, goes to the loggers.

    Args:
        recorder: makes what writes the pictures, see ``runner.record.video.VideoRecorder``.
        episodes: of one video, side by side; each stays at its last picture until all have ended.
        run: without one there are no videos.
    """

    point = "post_steps_log"
    remembers = ("count",)

    def __init__(
        self,
        environment: Any,
        streams: Streams,
        evaluation: Any,
        recorder: Factory,
        every: Every,
        episodes: PositiveInt = 1,
        run: Any = None,
    ) -> None:
        super().__init__(every)
        self.evaluation, self.episodes, self.count = evaluation, episodes, 0
        self._spec, self._seed = environment.spec, streams.seed
        self._envs: list[Any] = []
        self._fps: float | None = None
        self.recorder: Any = None
        with unchanged_globals():
            self._envs += [environment.make_for_recording(index) for index in range(episodes)]
            self._try_out(self._envs[0])
        if run is not None:  # else there is no place for videos
            self.recorder = recorder()
            self.recorder.remove_unfinished()
            self.recorder.fps = self.recorder.fps or self._fps

    def _try_out(self, env: Any) -> None:
        """Find out now, not after an hour, whether there are pictures."""
        try:
            env.reset(0)
            picture = env.env.render()
        except Exception as error:  # whatever the library that draws raises
            raise ConfigError(f"hooks.record_video: {env.name} cannot be drawn: {_line(error)}") from error
        if not isinstance(picture, np.ndarray):
            shown = f"render() returned a {type(picture).__name__}"
            raise ConfigError(f"hooks.record_video: {self._spec.id} shows no pictures (rgb_array): {shown}")
        rate = env.env.metadata.get("render_fps")
        self._fps = float(rate) / self._spec.frame_skip if rate else None

    def __call__(self, batch: TensorDictBase) -> None:
        recorder = self.recorder
        if recorder is None:
            return
        seeds = [env_seed(self._seed, STREAM, self.count, index) for index in range(self.episodes)]
        try:
            self.evaluation.watch(self._envs, seeds, self._show)
            paths = recorder.dump(self.progress.step)
        except Abandoned:
            recorder.abandon()
            raise
        except Exception as error:  # whatever the environment, its renderer or the encoder raises: it is only a video
            recorder.abandon()
            log.warning("no video at %s; training goes on: %s", self.progress.place_in_words, _line(error))
        else:
            for path in paths:
                self.trainer.metrics.log_video(f"video/{recorder.tag}", path, self.progress, recorder.fps or FPS)
        self.count += 1

    def _show(self) -> bool:
        """Add the pictures of now, and say whether there is room for more."""
        pictures = [env.env.render() for env in self._envs]
        self.recorder.add(pictures[0] if len(pictures) == 1 else np.stack(pictures))
        most = self.recorder.max_frames
        return most is None or self.recorder.frames < most

    def look(self) -> str:
        """Where the videos are, the newest by its name; the empty string where there are none."""
        found = [] if self.recorder is None else self.recorder.written()
        if not (paths := sorted(found, key=_made)):
            return ""
        newest = paths[-1].relative_to(Path.cwd()) if paths[-1].is_relative_to(Path.cwd()) else paths[-1]
        more = f"  (the newest of {len(paths)} videos)" if len(paths) > 1 else ""
        return f"{shlex.quote(str(newest))}{more}"

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs.clear()


def _made(path: Path) -> float:
    return path.stat().st_mtime


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
