"""The hook that logs how the numbers of one entry of the collected batches are distributed."""

from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from runner.hook import Hook
from runner.spec import as_key, played
from runner.types import Every, KeyPath, PositiveInt


class LogHistogram(Hook):
    """Hands the numbers of one entry of a batch to every logger that shows histograms; what is not finite is left out.

    Rows that ``("collector", "mask")`` marks invalid are left out, too.

    Args:
        key: of the entry; a list for a nested one.
        logname: of the histogram; ``train/`` and the key if not given.
        bins: of equal width, from the least of the numbers to the greatest.
    """

    point = "pre_steps_log"

    def __init__(
        self,
        key: KeyPath = "action",
        logname: str | None = None,
        bins: PositiveInt = 64,
        every: Every | None = None,
    ) -> None:
        super().__init__(every)
        words = (key,) if isinstance(key, str) else tuple(key)
        self.key: NestedKey = as_key(words)
        self.logname, self.bins = logname or "train/" + "_".join(words), bins

    def register(self, trainer: Any, name: str | None = None) -> None:
        super().register(trainer, name)
        self.metrics = trainer.metrics

    def __call__(self, batch: TensorDictBase) -> None:
        values = played(batch, self.key, self.default_name()).double()
        finite = values[values.isfinite()]
        if finite.numel():
            self.metrics.log_histogram(self.logname, finite, self.progress, self.bins)
