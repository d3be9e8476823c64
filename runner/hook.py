"""The contract of a hook, and the clock that says when one is due."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from tensordict import TensorDict, TensorDictBase

from runner.kept_batches import put_together, take_apart
from runner.spec import ContractError, Progress, StateDict, parts_of
from runner.types import Every, Unit


class TrainerHookBase(ABC):
    """A part that plugs into the loop: it has state, and knows at which points it wants to be called.

    ``by_module``: whether a run of several modules has one for each, which sees that module's part of every batch.
    Where it is not said, so is a hook that stands where there are batches of steps, or asks for parts of a module.
    """

    by_module: ClassVar[bool | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "save_dict" in vars(cls) and "state_dict" not in vars(cls):
            warnings.warn(f"{cls.__name__}.save_dict is now called state_dict", DeprecationWarning, stacklevel=2)
            cls.state_dict = cls.save_dict  # type: ignore[attr-defined,method-assign]
            cls.__abstractmethods__ = frozenset(getattr(cls, "__abstractmethods__", ())) - {"state_dict"}

    def __new__(cls, *arguments: Any, **kwargs: Any) -> "TrainerHookBase":
        if cls.__abstractmethods__:
            raise ContractError(f"{cls.__name__} is no hook yet: it lacks {', '.join(sorted(cls.__abstractmethods__))}")
        return super().__new__(cls)

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

    def release(self) -> None:  # noqa: B027 (there is mostly nothing to do)
        """The trainer has taken this hook out."""


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
        self._before_that: float = 0
        self._followed: Progress | None = None

    def fires(self, progress: Progress) -> bool:
        now = getattr(progress, self.unit)
        is_due = now // self.n > self._before // self.n
        self._before_that, self._before = self._before, now
        return is_due

    def take_back(self) -> None:
        """What was due has not been done after all."""
        self._before = self._before_that

    def fires_always(self, progress: Progress) -> None:
        """Nobody asks any more: it would fire each time; ``progress`` says where it is when it is saved."""
        self._followed = progress

    def __str__(self) -> str:
        return f"every {self.n:g} {self.unit}"

    def state_dict(self) -> StateDict:
        before = self._before if self._followed is None else getattr(self._followed, self.unit)
        return {"unit": self.unit, "before": before}

    def load_state_dict(self, state: StateDict) -> None:
        if state["unit"] == self.unit:  # counts of another unit, from before it was changed, say nothing
            self._before = self._before_that = state["before"]


class Hook(TrainerHookBase):
    """Base of hooks with one operation: ``__call__`` at ``point``, each so often, which is all there is to write.

    Saved are its interval and the attributes that ``remembers`` names: tensors, arrays, numbers, texts, lists, dicts.

    Args:
        every: for example ``{"env_steps": 1000}``; each time that the point fires where not given.
    """

    point: ClassVar[str] = ""
    remembers: ClassVar[tuple[str, ...]] = ()
    interval: Interval | None = None
    __call__: Callable[..., Any]

    def __init__(self, every: Every | None = None) -> None:
        self.interval = Interval(every) if every else None

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.trainer, self.progress = trainer, trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op(self.point, self, every=self.interval)

    def state_dict(self) -> StateDict:
        state = {name: deepcopy(getattr(self, name)) for name in self.remembers}
        return state | ({} if self.interval is None else {"interval": self.interval.state_dict()})

    def load_state_dict(self, state: StateDict) -> None:
        for name in self.remembers:
            setattr(self, name, deepcopy(state[name]))
        if self.interval is not None and "interval" in state:
            self.interval.load_state_dict(state["interval"])


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
        if self.batch.batch_dims:
            return {"done": self.done, **take_apart(self.batch)}
        parts = {module_id: take_apart(part) for module_id, part in parts_of(self.batch).items()}
        return {"done": self.done, "parts": parts}

    def load_state_dict(self, state: StateDict) -> None:
        self.forget()
        if "parts" in state:
            parts: dict[str, Any] = {module_id: put_together(part) for module_id, part in state["parts"].items()}
            self.keep(TensorDict(parts, []), state["done"])
        elif state:
            self.keep(put_together(state), state["done"])
