"""The hook that puts the number of frames among the metrics."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import StatelessHook


class CountFramesLog(StatelessHook):
    """Logs ``train/n_frames``: env steps times the frame skip, as the run's progress counts them."""

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("pre_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        return {"train/n_frames": self.progress.frames}
