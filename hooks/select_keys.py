"""The hook that keeps of each batch what is needed."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Len
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from runner.hook import Hook
from runner.spec import ConfigError, as_key
from runner.types import Every, KeyPath


class SelectKeys(Hook):
    """Drops every entry of the collected batches but those of ``keys``; a nested one is a list of names.

    Hooks registered later see what is left. What was collected is counted before.
    """

    point = "batch_process"

    def __init__(self, keys: Annotated[Sequence[KeyPath], Len(1)], every: Every | None = None) -> None:
        super().__init__(every)
        if isinstance(keys, str) or not keys:
            raise ValueError(f"keys is a list of entries, for example [observation, action]; got {keys!r}")
        self.keys: list[NestedKey] = [as_key(key) for key in keys]

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        try:
            return batch.select(*self.keys)
        except KeyError:
            there = list(batch.keys(include_nested=True, leaves_only=True))
            lacking = [key for key in self.keys if key not in there]
            raise ConfigError(f"select_keys: the batch has no {lacking}; it has {there}") from None
