"""The hook that shows a person how far a run is."""

import sys
from typing import Any

from tensordict import TensorDictBase
from tqdm import tqdm

from runner.hook import StatelessHook

SHORT_NAMES = {
    "train/return_mean": "return",
    "eval/return_mean": "eval",
    "train/epsilon": "epsilon",
}


class ProgressBar(StatelessHook):
    """A bar of env steps with the latest return, evaluation, epsilon and loss.

    Where the output is no terminal, a line is printed for each tenth of the run instead.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._shown_tenth = -1

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.trainer = trainer
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("post_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> None:
        progress, is_terminal = self.trainer.progress, sys.stderr.isatty()
        if self._bar is None:
            total = -(-self.trainer.total_frames // progress.frame_skip)
            self._bar = tqdm(
                total=total, initial=self._steps_before(batch), unit=" steps", unit_scale=False, mininterval=0.2,
                disable=not is_terminal, dynamic_ncols=True, file=sys.stderr,
            )  # fmt: skip
        if is_terminal:
            if self._bar.update(progress.env_steps - self._bar.n):
                self._bar.set_postfix(self._values(), refresh=False)
        else:
            self._print_tenths()

    def _steps_before(self, batch: TensorDictBase) -> int:
        return self.trainer.progress.env_steps - batch.numel()

    def _values(self) -> dict[str, str]:
        latest = self.trainer.metrics.latest
        values = {
            SHORT_NAMES.get(name, name.rsplit("/")[-1]): value for name, value in self.trainer.pbar_values.items()
        }
        values.update(("loss", value) for name, value in latest.items() if name.startswith("loss/"))
        shown = ("return", "eval", "epsilon", "loss")
        return {name: f"{float(values[name]):.3g}" for name in shown if name in values}

    def _print_tenths(self) -> None:
        progress, total = self.trainer.progress, self.trainer.total_frames
        tenth = 10 * progress.frames // max(total, 1)
        if tenth > self._shown_tenth:
            self._shown_tenth = tenth
            values = "  ".join(f"{name} {value}" for name, value in self._values().items())
            print(f"{progress.env_steps:>9,} steps  {min(tenth * 10, 100):>3} %  {values}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.set_postfix(self._values(), refresh=True)
            self._bar.close()
