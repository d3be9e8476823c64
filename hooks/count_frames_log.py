"""The hook that puts the number of frames among the metrics."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.types import Every


class CountFramesLog(Hook):
    """Logs ``train/n_frames``: env steps times the frame skip, as the run's progress counts the raw batches."""

    point = "pre_steps_log"
    by_module = False

    def __init__(self, log_pbar: bool = False, every: Every | None = None) -> None:
        super().__init__(every)
        self.log_pbar = log_pbar

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        return {"train/n_frames": self.progress.frames, "log_pbar": self.log_pbar}
