"""Keeps what was collected."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.spec import (
    ACTION,
    ACTION_MASK,
    IS_INIT,
    MASK,
    NEXT_ACTION_MASK,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    NEXT_TRUNCATED,
    OBSERVATION,
    TRAJ_IDS,
    ConfigError,
    EnvSpec,
    StateDict,
    Stateful,
)

TRANSITION: tuple[NestedKey, ...] = (
    OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED, NEXT_TRUNCATED, NEXT_DONE,
)  # fmt: skip
"""What offline learning needs of an env step."""
ALSO: tuple[NestedKey, ...] = (ACTION_MASK, NEXT_ACTION_MASK, TRAJ_IDS)
"""What is kept besides where the batches have it."""


class Writer(Stateful, Protocol):
    """Takes rows ``[R, ...]``; see ``runner.data.dataset_writer.DatasetWriter``."""

    about: dict[str, Any]

    def append(self, rows: Mapping[NestedKey, Tensor]) -> None: ...

    def close(self) -> None: ...


class TensorDictRecorder:
    """Hands the env steps of collected batches ``[N, T]`` over to be written, in the order in which they were taken.

    Rows that ``MASK`` marks invalid are left out. Nothing is kept in memory but which episodes are under way. Actions
    are those that the environment took, which a policy's own may go beyond.

    Args:
        skip_reset: say nothing of where episodes begin; otherwise ``is_init`` is true in the first row that is
            kept of each.
        skip: of each environment, only the first of every so many env steps is kept.
        in_keys: which entries; if not given, a transition and what else the batch has of ``ALSO``.
        spec: within whose bounds vectors are taken; without one there are no bounds.
    """

    def __init__(
        self,
        writer: Writer,
        skip_reset: bool = True,
        skip: int = 4,
        in_keys: Sequence[NestedKey] | None = None,
        spec: EnvSpec | None = None,
    ) -> None:
        self.writer, self.skip_reset, self.skip = writer, skip_reset, skip
        self.in_keys = None if in_keys is None else tuple(in_keys)
        self._bounds = None if spec is None else _bounds_of(spec)
        self._keys: tuple[NestedKey, ...] = ()
        self._steps = 0
        self._has_ended = torch.empty(0, dtype=torch.bool)
        self._under_way: list[int] = []
        # Of which environments, or trajectories, the beginning was not kept, nor any step since.
        self._waiting = torch.empty(0, dtype=torch.bool)
        self._waiting_ids: list[int] = []

    def record(self, batch: TensorDictBase) -> None:
        """Keep what is asked for of the batch.

        Raises:
            ConfigError: where it lacks an entry.
        """
        if not self._keys:
            self._begin(batch)
        steps = batch.batch_size[1]
        columns = {key: batch.get(key).transpose(0, 1) for key in self._keys}
        kept = slice((-self._steps) % self.skip, steps, self.skip)
        self._steps = (self._steps + steps) % self.skip
        mask = batch.get(MASK, None)
        valid = None if mask is None else mask.transpose(0, 1)[kept].reshape(-1)
        rows = {key: column[kept].flatten(0, 1) for key, column in columns.items()}
        if not self.skip_reset:
            rows[IS_INIT] = self._first_kept(batch, kept).flatten(0, 1)
        if self._bounds is not None and ACTION in rows:
            low, high = (bound.to(rows[ACTION]) for bound in self._bounds)
            rows[ACTION] = rows[ACTION].clamp(low, high)
        self.writer.append(rows if valid is None else {key: row[valid] for key, row in rows.items()})

    def _begin(self, batch: TensorDictBase) -> None:
        there = list(batch.keys(include_nested=True, leaves_only=True))
        wanted = self.in_keys or (*TRANSITION, *(key for key in ALSO if key in there))
        lacking = [key for key in wanted if key not in there]
        if lacking:
            raise ConfigError(f"record_tensordict: the batch has no {lacking}; it has {there}")
        self._keys = wanted
        # With a mask, not every row of a batch is there, and those of an environment are no longer equally far apart.
        num_envs = batch.batch_size[0] if batch.get(MASK, None) is None else None
        self.writer.about |= {"num_envs": num_envs, "skip": self.skip}

    def _first_kept(self, batch: TensorDictBase, kept: slice) -> Tensor:
        """Which of the kept steps ``[K, N]`` are the first that are kept of an episode."""
        first, ids = self._first_steps(batch), batch.get(TRAJ_IDS, None)
        if ids is None:
            waiting = self._waiting if len(self._waiting) else torch.zeros(first.shape[1], dtype=torch.bool)
        else:
            waiting = torch.tensor([one in self._waiting_ids for one in ids[:, 0].tolist()])
        begun = waiting + first.cumsum(0)  # [T, N]
        counts = torch.cat([torch.zeros_like(begun[:1]), begun[kept]])
        is_waiting = begun[-1] > counts[-1]
        if ids is None:
            self._waiting = is_waiting
        else:
            others = set(self._waiting_ids) - set(ids.flatten().tolist())
            goes_on = is_waiting & ~batch.get(NEXT_DONE)[:, -1]
            self._waiting_ids = sorted(others | set(ids[:, -1][goes_on].tolist()))
        return counts[1:] > counts[:-1]

    def _first_steps(self, batch: TensorDictBase) -> Tensor:
        """Which of the steps ``[T, N]`` begin an episode."""
        given = batch.get(IS_INIT, None)
        if given is not None:
            return given.transpose(0, 1)
        done = batch.get(NEXT_DONE).transpose(0, 1)
        if not len(self._has_ended):
            self._has_ended = torch.ones(done.shape[1], dtype=torch.bool)
        ids = batch.get(TRAJ_IDS, None)
        first = self._has_ended if ids is None else self._are_new(ids.transpose(0, 1), done)
        self._has_ended = done[-1].clone()
        return torch.cat([first[None], done[:-1]])

    def _are_new(self, ids: Tensor, done: Tensor) -> Tensor:
        """Which environments ``[N]`` begin an episode with the batch, where batches are of some of them in turns."""
        known = set(self._under_way)
        first = torch.tensor([one not in known for one in ids[0].tolist()])
        known -= set(ids.flatten().tolist())
        self._under_way = sorted(known | set(ids[-1][~done[-1]].tolist()))
        return first

    def close(self) -> None:
        """Bring what there is to the disk."""
        self.writer.close()

    def state_dict(self) -> StateDict:
        state = {"steps": self._steps, "has_ended": self._has_ended, "under_way": list(self._under_way)}
        state |= {"waiting": self._waiting, "waiting_ids": list(self._waiting_ids)}
        return {**state, "writer": self.writer.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.writer.load_state_dict(state["writer"])
        self._steps, self._has_ended = state["steps"] % self.skip, state["has_ended"].clone()
        self._under_way = list(state["under_way"])
        self._waiting, self._waiting_ids = state["waiting"].clone(), list(state["waiting_ids"])


def _bounds_of(spec: EnvSpec) -> tuple[Tensor, Tensor] | None:
    if spec.num_actions is not None or spec.action_low is None or spec.action_high is None:
        return None
    return torch.as_tensor(spec.action_low), torch.as_tensor(spec.action_high)
