"""The hook that shows a person how far a run is."""

import sys
from contextlib import suppress

from tensordict import TensorDictBase
from tqdm import tqdm

from runner.hook import Hook
from runner.spec import parts_of
from runner.types import Every

SHORT_NAMES = {"train/return_mean": "return", "eval/return_mean": "eval", "train/epsilon": "epsilon"}
HIDDEN = {"train/length_mean", "eval/return_std", "eval/length_mean"}


class ProgressBar(Hook):
    """A bar of env steps with the latest return, evaluation, epsilon, losses, and what other hooks flag ``log_pbar``.

    Where nothing is played it is one of updates. Where the output is no terminal, a line is printed for each tenth of
    the run instead.
    """

    point = "post_steps_log"

    def __init__(self, every: Every | None = None) -> None:
        super().__init__(every)
        self._bar: tqdm | None = None
        self._is_terminal = False
        self._shown_tenth = -1

    def __call__(self, batch: TensorDictBase) -> None:
        if self._bar is None:
            self._bar = self._begin(batch)
        with suppress(OSError):  # the terminal was closed: no reason to end the run
            self._show()

    def _show(self) -> None:
        assert self._bar is not None
        if not self._is_terminal:
            self._print_tenths()
        elif self._bar.update(self.trainer.progress.place - self._bar.n):
            self._bar.set_postfix(self._values(), refresh=False)

    def _begin(self, batch: TensorDictBase) -> tqdm:
        self._is_terminal = sys.stderr.isatty()  # asked once: a system call in every batch would cost more than the bar
        progress = self.trainer.progress
        self._initial = progress.place - _steps(batch), progress.seconds
        frames, limits = self.trainer.total_frames, self.trainer.stop_after
        self._total = int(limits.get("updates", 0)) if frames is None else -(-frames // progress.frame_skip)
        self._unit = "updates" if progress.axis == "updates" else "steps"
        return tqdm(
            total=self._total,
            initial=self._initial[0],
            unit=f" {self._unit}",
            mininterval=0.2,
            disable=not self._is_terminal,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def _values(self) -> dict[str, str]:
        """What is shown, the usual four first."""
        latest = self.trainer.metrics.latest
        losses = {name: value for name, value in latest.items() if name.startswith("loss/")}
        flagged = {name: value for name, value in self.trainer.pbar_values.items() if not _is_hidden(name)}
        others = [name for name in flagged if name not in SHORT_NAMES]
        order = [*SHORT_NAMES, *losses, *others]
        values = {**flagged, **losses}
        names = {name: "loss" if len(losses) == 1 and name in losses else _short(name) for name in order}
        return {names[name]: f"{float(values[name]):.3g}" for name in order if name in values}

    def _print_tenths(self) -> None:
        place, total = self.trainer.progress.place, max(self._total, 1)
        tenth = 10 * place // total
        if tenth > self._shown_tenth:
            self._shown_tenth = tenth
            values = "".join(f"  {name} {value}" for name, value in self._values().items())
            percent = min(100 * place // total, 100)
            print(f"{place:>9,} {self._unit}  {percent:>3} %{self._rate()}{values}", file=sys.stderr, flush=True)

    def _rate(self) -> str:
        steps, seconds = self._initial
        passed = self.trainer.progress.seconds - seconds
        return f"  {(self.trainer.progress.place - steps) / passed:,.0f} {self._unit}/s" if passed > 0 else ""

    def release(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None and not self._bar.disable:  # a closed bar is a disabled one
            with suppress(OSError):
                self._bar.set_postfix(self._values(), refresh=True)
                self._bar.close()


def _steps(batch: TensorDictBase) -> int:
    return sum(part.batch_size.numel() for part in parts_of(batch).values())


def _is_hidden(name: str) -> bool:
    """Whether it would only crowd the bar; of the evaluation of several modules, their mean is shown."""
    return name in HIDDEN or name.endswith("/train/length_mean") or (name.startswith("eval/") and name.count("/") > 1)


def _short(name: str) -> str:
    """The last word of a metric, or the usual one; the id of a module stays before it."""
    module_id, _, own = name.partition("/")
    if own.count("/") == 1:
        return f"{module_id} {_short(own)}"
    return SHORT_NAMES.get(name, name.rsplit("/")[-1])
