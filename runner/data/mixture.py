"""Several sources as one: every sub-batch has a fixed part from each of them."""

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.spec import IMPORTANCE_WEIGHT, NEXT_STEPS, TD_ERROR, CheckpointError, StateDict

ABSENT: dict[NestedKey, float] = {IMPORTANCE_WEIGHT: 1.0, NEXT_STEPS: 1}
"""What a source means that does not give these keys where another one does."""


class Mixture:
    """Puts sub-batches together from several sources, in their order (half and half: Ball et al. 2023, RLPD).

    Collected batches go to every source but those that say ``is_fixed``; priorities go back to the source whose samples
    they are of. The sub-batch ``[B]`` is overwritten by the next ``sample``.

    Args:
        sources: by name; each has a ``batch_size`` that can be set.
        fractions: by the same names, what part of a sub-batch comes from each; they add up to 1.
        batch_size: transitions of a sub-batch.
        optim_steps: updates for each collected batch.
        warmup: env steps before the first update.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        fractions: Mapping[str, float],
        *,
        batch_size: int,
        optim_steps: int = 1,
        warmup: int = 0,
    ) -> None:
        self.sources, self.batch_size, self.warmup = dict(sources), batch_size, warmup
        self.shares = shares(self.sources, fractions, batch_size)
        for name, source in self.sources.items():
            source.batch_size = self.shares[name]
        self._optim_steps = optim_steps
        self._rows: dict[NestedKey, Tensor] = {}
        self._sub_batch: TensorDict | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Per-sample outputs of the loss without which one of the sources cannot work."""
        return tuple(sorted({key for source in self.sources.values() for key in getattr(source, "needs", ())}))

    def check(self, num_envs: int, steps: int) -> None:
        """Raise ``ValueError`` if batches ``[num_envs, steps]`` cannot be kept by one of the sources."""
        for name, source in self._taking():
            try:
                source.check(num_envs, steps)
            except ValueError as error:
                raise ValueError(f"source.sources.{name}: {error}") from error

    def _taking(self) -> list[tuple[str, Any]]:
        return [(name, source) for name, source in self.sources.items() if not getattr(source, "is_fixed", False)]

    def extend(self, batch: TensorDictBase) -> None:
        for _, source in self._taking():
            source.extend(batch)

    def optim_steps(self) -> int:
        return self._optim_steps

    def sample(self, batch: TensorDictBase | None = None) -> TensorDict:
        """Draw a sub-batch ``[B]``."""
        parts = [source.sample(batch) for source in self.sources.values()]
        sub_batch = self._sub_batch if self._sub_batch is not None else self._make_sub_batch(parts)
        for key, rows in self._rows.items():
            for share, part in zip(rows.split(list(self.shares.values())), parts, strict=True):
                found = part.get(key, None)
                share.copy_(found) if found is not None else share.fill_(ABSENT[key])
        if self.needs and TD_ERROR in sub_batch.keys():
            sub_batch.del_(TD_ERROR)  # of the last update: the next one has to give its own
        return sub_batch

    def _make_sub_batch(self, parts: list[TensorDictBase]) -> TensorDict:
        found: dict[NestedKey, Any] = {}
        for part in parts:
            found |= part.items(include_nested=True, leaves_only=True)
        found.pop(TD_ERROR, None)
        for name, part in zip(self.sources, parts, strict=True):
            if part.batch_size != (self.shares[name],):
                raise ValueError(f"source.sources.{name} gives {list(part.batch_size)}, which cannot be mixed")
            lacking = [key for key in found if key not in ABSENT and part.get(key, None) is None]
            if lacking:
                raise ValueError(f"source.sources.{name} has no {lacking[0]}, which another source of the mixture has")
        self._rows = {key: one.new_empty((self.batch_size, *one.shape[1:])) for key, one in found.items()}
        self._sub_batch = TensorDict(batch_size=[self.batch_size], device=parts[0].device)
        for key, rows in self._rows.items():
            self._sub_batch.set(key, rows)
        return self._sub_batch

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        """Hand each source the ``td_error`` of its own samples."""
        errors = sub_batch.get(TD_ERROR, None)
        parts = errors.split(list(self.shares.values())) if errors is not None else [None] * len(self.sources)
        for source, part in zip(self.sources.values(), parts, strict=True):
            source.update_priority(TensorDict({} if part is None else {TD_ERROR: part}, batch_size=[]))

    def memory_bytes(self, row: TensorDictBase) -> int:
        """What the sources will take together, given one collected batch ``[N, T]``."""
        return sum(source.memory_bytes(row) for source in self.sources.values() if hasattr(source, "memory_bytes"))

    def state_dict(self) -> StateDict:
        return {name: source.state_dict() for name, source in self.sources.items()}

    def load_state_dict(self, state: StateDict) -> None:
        missing = [name for name in self.sources if name not in state]
        if missing:
            raise CheckpointError(f"it has no source {missing[0]!r}")
        for name, source in self.sources.items():
            source.load_state_dict(state[name])


def shares(names: Mapping[str, Any], fractions: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """How many of ``batch_size`` samples are from each source: the fractions, rounded so that the sum is right."""
    if not names or set(names) != set(fractions):
        raise ValueError(f"source.fractions has {', '.join(fractions) or 'none'}; the sources are {', '.join(names)}")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"source.fractions add up to {sum(fractions.values()):g}, and not to 1")
    whole = {name: int(fractions[name] * batch_size + 1e-6) for name in names}
    by_rest = sorted(names, key=lambda name: whole[name] - fractions[name] * batch_size)
    for name in by_rest[: batch_size - sum(whole.values())]:
        whole[name] += 1
    empty = [name for name, count in whole.items() if not count]
    if empty:
        raise ValueError(f"source.fractions.{empty[0]}={fractions[empty[0]]:g} of {batch_size} samples are none")
    return whole
