"""The hook that logs one entry of the collected batches."""

from typing import Any, Literal

from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from runner.hook import Hook
from runner.spec import NEXT_REWARD, as_key, played
from runner.types import Every, KeyPath

Reduction = Literal["mean", "sum", "min", "max"]


class LogScalar(Hook):
    """Logs a number for each batch: the mean, sum, least or greatest of one of its entries.

    Rows that ``("collector", "mask")`` marks invalid are left out.

    Args:
        key: of the entry; a list for a nested one, the reward if not given.
        logname: of the metric; ``train/`` and the key if not given.
        log_pbar: show it in the progress bar.
        include_std: log the standard deviation over the batch as well (dividing by the count), as ``<logname>_std``.
    """

    point = "pre_steps_log"

    def __init__(
        self,
        key: KeyPath | None = None,
        logname: str | None = None,
        log_pbar: bool = False,
        include_std: bool = True,
        reduction: Reduction = "mean",
        every: Every | None = None,
    ) -> None:
        super().__init__(every)
        words = NEXT_REWARD if key is None else (key,) if isinstance(key, str) else tuple(key)
        self.key: NestedKey = as_key(words)
        self.logname, self.log_pbar = logname or "train/" + "_".join(words), log_pbar
        if reduction not in ("mean", "sum", "min", "max"):
            raise ValueError(f"no reduction {reduction!r}; there are mean, sum, min and max")
        self.include_std, self.reduction = include_std, reduction

    def __call__(self, batch: TensorDictBase) -> dict[str, Any] | None:
        values = played(batch, self.key, self.default_name()).float()
        if not values.numel():
            return None
        logged: dict[str, Any] = {self.logname: getattr(values, self.reduction)()}
        if self.include_std:
            logged[f"{self.logname}_std"] = values.std(correction=0)
        return {**logged, "log_pbar": self.log_pbar}
