"""The contract of a hook, and the clock that says when one is due."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.spec import Progress, StateDict
from runner.types import Unit

POINTS = {
    "batch_process": "data",
    "pre_steps_log": "log",
    "pre_optim_steps": "operation",
    "process_optim_batch": "data",
    "post_loss": "operation",
    "optimizer": "optimization",
    "post_optim": "operation",
    "post_optim_log": "log",
    "post_steps": "operation",
    "post_steps_log": "log",
}
"""The ten points of the loop in the order they fire, and the kind of each.

``data(batch) -> TensorDict`` replaces the batch; ``log(batch) -> dict | None`` returns metrics, where the reserved
key ``log_pbar`` says whether the progress bar shows them; an ``operation`` takes nothing (``post_loss`` takes the
sub-batch); ``optimization(losses, sub_batch) -> dict | None`` moves the weights and may return metrics.
"""


class TrainerHookBase(ABC):
    """A part that plugs into the loop: it has state, and knows at which points it wants to be called."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "save_dict" in vars(cls) and "state_dict" not in vars(cls):
            warnings.warn(f"{cls.__name__}.save_dict is now called state_dict", DeprecationWarning, stacklevel=2)
            cls.state_dict = cls.save_dict  # type: ignore[attr-defined,method-assign]
            cls.__abstractmethods__ = frozenset(getattr(cls, "__abstractmethods__", ())) - {"state_dict"}

    @classmethod
    def default_name(cls) -> str:
        """The name ``register`` uses unless told another: the class name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    @abstractmethod
    def register(self, trainer: Any, name: str | None = None) -> None:
        """Register this hook's state under ``name`` and its operations at their points."""

    @abstractmethod
    def state_dict(self) -> StateDict: ...

    @abstractmethod
    def load_state_dict(self, state: StateDict) -> None: ...


class StatelessHook(TrainerHookBase):
    """Base of hooks that have nothing to remember."""

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        pass


class Interval:
    """Fires each time a counter of the run crosses a multiple of ``n``: when ``now // n > before // n``.

    Args:
        every: one unit and how many of it, for example ``{"env_steps": 1000}``.
    """

    def __init__(self, every: Mapping[Any, float]) -> None:
        if len(every) != 1:
            raise ValueError(f"an interval has exactly one unit, for example {{'env_steps': 1000}}; got {dict(every)}")
        ((self.unit, self.n),) = every.items()
        if self.unit not in get_args(Unit) or self.n <= 0:
            raise ValueError(f"no interval of {self.n} {self.unit}: n > 0 of {', '.join(get_args(Unit))}")
        self._before: float = 0

    def fires(self, progress: Progress) -> bool:
        now = getattr(progress, self.unit)
        is_due = now // self.n > self._before // self.n
        self._before = now
        return is_due

    def __str__(self) -> str:
        return f"every {self.n:g} {self.unit}"

    def state_dict(self) -> StateDict:
        return {"unit": self.unit, "before": self._before}

    def load_state_dict(self, state: StateDict) -> None:
        if state["unit"] == self.unit:  # counts of another unit, from before it was changed, say nothing
            self._before = state["before"]


@dataclass
class StopRequest:
    """Why a hook wants the run to end, if one does."""

    reason: str | None = None

    def state_dict(self) -> StateDict:
        return {"reason": self.reason}

    def load_state_dict(self, state: StateDict) -> None:
        self.reason = state["reason"]


class UnfinishedBatch:
    """The batch at whose end a run was told to stop, and how many operations of ``post_steps_log`` it has behind it."""

    def __init__(self) -> None:
        self.batch: TensorDictBase | None = None
        self.done = 0

    def keep(self, batch: TensorDictBase, done: int) -> None:
        self.batch, self.done = batch, done

    def forget(self) -> None:
        self.batch, self.done = None, 0

    def state_dict(self) -> StateDict:
        if self.batch is None:
            return {}
        leaves = self.batch.items(include_nested=True, leaves_only=True)
        tensors = [(key, value) for key, value in leaves if isinstance(value, Tensor)]
        return {"done": self.done, "batch_size": list(self.batch.batch_size), "tensors": tensors}

    def load_state_dict(self, state: StateDict) -> None:
        self.forget()
        if state:
            batch = TensorDict(batch_size=state["batch_size"])
            for key, tensor in state["tensors"]:
                batch.set(key, tensor)
            self.keep(batch, state["done"])
