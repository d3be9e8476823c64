"""Which checkpoints are of the best evaluated weights: each says in its manifest what its weights reached."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from runner.spec import StateDict, place_of

EVALUATED = "evaluated"
GIVEN_UP = "given_up"


class BestCheckpoint(NamedTuple):
    """A checkpoint and what its weights reached; ``env_steps`` are updates where nothing was played."""

    folder: Path
    value: float
    env_steps: int


class Best:
    """Notes each new value of a metric, and ranks the checkpoints that were made where there was one.

    Args:
        keep: how many count as best.
        metric: what is compared.
        mode: ``max`` where higher is better, else ``min``.
    """

    def __init__(self, keep: int, metric: str, mode: str) -> None:
        self.keep, self.metric, self.sign = keep, metric, 1.0 if mode == "max" else -1.0
        self._seen: Any = None
        self._value: float | None = None
        self._env_steps = -1
        self._given_up: list[list[int]] | None = None

    def goes_on_from(self, manifest: Mapping[str, Any], newest: int) -> None:
        """Leave out those made after the one loaded, up to the ``newest`` sequence: the run has another future now."""
        sequence = manifest["sequence"]
        self._given_up = _given_up_in(manifest) + ([[sequence + 1, newest]] if newest > sequence else [])

    def notes(self, latest: Mapping[str, Any], env_steps: int) -> bool:
        """Whether there is a value that was not there before: a new value is a new object, even if it is equal."""
        found = latest.get(self.metric) if self.keep else None
        if found is None or found is self._seen:
            return False
        self._seen, self._value, self._env_steps = found, float(found), env_steps
        return isfinite(self._value)

    def is_among(self, manifests: Sequence[tuple[Path, Mapping[str, Any]]]) -> bool:
        """Whether the noted value is better than those of all checkpoints but fewer than ``keep``."""
        better = [one for one in self.rank(manifests) if self.sign * one.value >= self.sign * (self._value or 0.0)]
        return len(better) < self.keep

    def rank(self, manifests: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[BestCheckpoint]:
        """Those with a value, the best first; of equal ones the older one, which comes first in ``manifests``.

        Those are left out that the run went back behind, when it was resumed from an earlier one.
        """
        given_up = self._given_up
        if given_up is None and manifests:  # nothing was loaded here, and the newest one knows
            given_up = _given_up_in(manifests[-1][1])
        found = [
            BestCheckpoint(folder, float(value), place_of(manifest["counters"]))
            for folder, manifest in manifests
            if (value := self._value_in(manifest)) is not None
            and not any(first <= manifest["sequence"] <= last for first, last in given_up or [])
        ]
        return sorted(found, key=lambda one: -self.sign * one.value)

    def _value_in(self, manifest: Mapping[str, Any]) -> float | None:
        evaluated = manifest["extra"].get(EVALUATED)
        value = evaluated.get(self.metric) if isinstance(evaluated, dict) else None
        return value if type(value) in (int, float) else None

    def evaluated_at(self, env_steps: int) -> StateDict:
        """What the manifest of a checkpoint made now says: what its weights reached, if they are those evaluated."""
        is_known = self._value is not None and isfinite(self._value) and env_steps == self._env_steps
        evaluated = {EVALUATED: {self.metric: self._value}} if self.keep and is_known else {}
        return evaluated | ({GIVEN_UP: self._given_up} if self._given_up else {})

    def state_dict(self) -> StateDict:
        state = {"metric": self.metric, "value": self._value, "env_steps": self._env_steps}
        return {EVALUATED: state} if self.keep and self._value is not None else {}

    def load_state_dict(self, state: StateDict) -> None:
        self._seen, self._value, self._env_steps = None, None, -1
        if self.keep and EVALUATED in state and state[EVALUATED]["metric"] == self.metric:
            self._value, self._env_steps = float(state[EVALUATED]["value"]), int(state[EVALUATED]["env_steps"])


def _given_up_in(manifest: Mapping[str, Any]) -> list[list[int]]:
    """The first and last sequence of each future that was given up; a file may say anything."""
    found = manifest["extra"].get(GIVEN_UP)
    pairs = found if isinstance(found, list) else []
    is_pair = [isinstance(one, list) and len(one) == 2 and all(type(part) is int for part in one) for one in pairs]
    return [list(one) for one, is_fit in zip(pairs, is_pair, strict=True) if is_fit]
