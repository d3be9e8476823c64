"""Recorded transitions as a source of sub-batches: what is played, if anything, does not go in."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.dataset import Dataset
from runner.data.dataset_header import DatasetError, describe_spec
from runner.data.replay import KEYS
from runner.returns import n_step as sum_n_steps
from runner.spec import (
    ACTION,
    ACTION_MASK,
    NEXT_ACTION_MASK,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TRAJ_IDS,
    CheckpointError,
    EnvSpec,
    StateDict,
)

COMPARED = (
    "observation_shape", "observation_dtype", "num_actions", "action_shape", "action_low", "action_high", "frame_skip",
)  # fmt: skip
"""In what the environment of a dataset and that of a run have to be alike."""
ROWS_OF_A_PART = 2**16
ROWS_OF_A_DIGEST = 512


class OfflineSource:
    """Draws each transition of a dataset equally often, with replacement (batch reinforcement learning; Lange 2012).

    The rows stay in their files; the sub-batch ``[B]`` is overwritten by the next ``sample``. With n-step, a window of
    rewards ends where the episode does, or the data.

    Args:
        dataset: rows of ``about["num_envs"]`` environments in turns.
        generator: draws.
        batch_size: transitions of a sub-batch.
        optim_steps: updates for each batch of the collector.
        n_step: rewards a sampled transition sums before it bootstraps.
        gamma: discount within those n steps.
        device: where sub-batches are.

    Raises:
        DatasetError: where the dataset has no rows, or lacks entries.
    """

    is_fixed = True
    needs: tuple[str, ...] = ()
    warmup = 0

    def __init__(
        self,
        dataset: Dataset,
        generator: torch.Generator,
        *,
        batch_size: int,
        optim_steps: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        device: str = "cpu",
    ) -> None:
        if not len(dataset):
            raise DatasetError(dataset.path, "it has no rows, so there is nothing to learn from")
        self.dataset, self.generator, self.device = dataset, generator, device
        self.batch_size, self.n, self.gamma = batch_size, n_step, gamma
        self._optim_steps = optim_steps
        self._num_envs, self._oldest = _order_of(dataset) if n_step > 1 else (1, 0)
        optional = [key for key in (ACTION_MASK, NEXT_ACTION_MASK) if key in dataset.keys]
        self._keys = (*KEYS, *optional)
        of_windows = [NEXT_DONE, *({TRAJ_IDS} & set(dataset.keys))] if n_step > 1 else []
        self._columns = {key: dataset.tensor(key) for key in (*self._keys, *of_windows)}
        self._arrays = {key: column.numpy() for key, column in self._columns.items()}
        self._rows: dict[NestedKey, Tensor] = {}
        self._sub_batch: TensorDict | None = None
        self._indices = torch.empty(0, dtype=torch.int64)

    def __str__(self) -> str:
        return f"{len(self.dataset):,} transitions of {self.dataset.path}"

    def extend(self, batch: TensorDictBase) -> None:
        """Nothing is added to a dataset."""

    def optim_steps(self) -> int:
        return self._optim_steps

    def sample(self, batch: TensorDictBase | None = None) -> TensorDict:
        """Draw a sub-batch ``[B]``."""
        sub_batch = self._sub_batch if self._sub_batch is not None else self._make_sub_batch()
        indices = torch.randint(0, len(self.dataset), (self.batch_size,), generator=self.generator, out=self._indices)
        if self.n == 1:
            self._gather(indices, self._keys)
        else:
            self._gather_n_step(indices)
        return sub_batch

    def _make_sub_batch(self) -> TensorDict:
        self._indices = torch.empty(self.batch_size, dtype=torch.int64)
        for key in self._keys:
            column = self._columns[key]
            self._rows[key] = torch.empty((self.batch_size, *column.shape[1:]), dtype=column.dtype, device=self.device)
        if self.n > 1:
            self._rows[NEXT_STEPS] = torch.empty(self.batch_size, dtype=torch.int64, device=self.device)
        self._sub_batch = TensorDict(batch_size=[self.batch_size], device=self.device)
        for key, rows in self._rows.items():
            self._sub_batch.set(key, rows)
            self._rows[key] = self._sub_batch.get(key)  # or it may have been copied to a device of another name
        return self._sub_batch

    def _gather(self, indices: Tensor, keys: Iterable[NestedKey]) -> None:
        for key in keys:
            if self.device == "cpu":
                self._arrays[key].take(indices.numpy(), axis=0, out=self._rows[key].numpy(), mode="clip")
            else:
                self._rows[key].copy_(self._columns[key][indices])

    def _gather_n_step(self, indices: Tensor) -> None:
        reward, done = self._columns[NEXT_REWARD], self._columns[NEXT_DONE]
        window = sum_n_steps(reward, done, self._windows(indices), self.n, self.gamma)
        self._gather(indices, [key for key in self._keys if isinstance(key, str)])
        self._gather(window.last, [key for key in self._keys if not isinstance(key, str) and key != NEXT_REWARD])
        self._rows[NEXT_REWARD].copy_(window.reward)
        self._rows[NEXT_STEPS].copy_(window.steps)

    def _windows(self, indices: Tensor) -> Tensor:
        """The rows ``[B, n]`` of an environment from ``indices`` on; -1 behind its newest, or in another trajectory."""
        size, ahead = len(self.dataset), self._num_envs * torch.arange(self.n)
        rows = (indices[:, None] + ahead) % size
        goes_on = (indices[:, None] - self._oldest) % size + ahead < size
        if TRAJ_IDS in self._columns:
            found = self._columns[TRAJ_IDS][rows]
            goes_on &= torch.cumsum(found != found[:, :1], dim=1) == 0
        return torch.where(goes_on, rows, -1)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        """All transitions are alike."""

    def observations(self) -> Iterator[Tensor]:
        """All observations ``[R, ...]``, part by part, for statistics of them."""
        yield from self._columns[OBSERVATION].split(ROWS_OF_A_PART)

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.get_state(), "rows": len(self.dataset), "digest": self._digest}

    def load_state_dict(self, state: StateDict) -> None:
        if (state["rows"], state["digest"]) != (len(self.dataset), self._digest):
            raise CheckpointError(f"dataset {self.dataset.path} is not the one it has learnt from: the rows are others")
        self.generator.set_state(state["generator"])

    @cached_property
    def _digest(self) -> str:
        """SHA-256 of rows here and there, which tells other data from these."""
        step = max(len(self.dataset) // ROWS_OF_A_DIGEST, 1)
        digest = hashlib.sha256()
        for key in KEYS:
            digest.update(self._arrays[key][::step].tobytes())
        return digest.hexdigest()


def _order_of(dataset: Dataset) -> tuple[int, int]:
    """How many rows lie between two of one environment, and which row came first; the others follow it in a ring."""
    num_envs, oldest = dataset.about.get("num_envs"), dataset.about.get("oldest", 0)
    if dataset.about.get("skip", 1) != 1 or not (type(num_envs) is int and num_envs > 0):
        raise DatasetError(dataset.path, "it does not hold every step, each so far from the next: source.n_step=1")
    if type(oldest) is not int or not 0 <= oldest < len(dataset):
        raise DatasetError(dataset.path, f"{oldest!r:.40} is none of its rows")
    return num_envs, oldest


def check_spec(dataset: Dataset, spec: EnvSpec) -> None:
    """Raise ``DatasetError`` unless the rows can be of the environment that ``spec`` describes."""
    own = describe_spec(spec)
    for name in COMPARED:
        recorded = dataset.spec.get(name)
        if recorded is not None and recorded != own[name]:
            id = dataset.spec.get("id") or "another environment"
            words = f"it was recorded in {id} with {name} = {recorded}; {spec.id} has {own[name]}"
            raise DatasetError(dataset.path, words)
    _check_columns(dataset, spec)


def _check_columns(dataset: Dataset, spec: EnvSpec) -> None:
    """The same of the rows themselves, whatever the header says."""
    observation = spec.observation_shape, _torch_dtype(spec.observation_dtype)
    scalar: tuple[int, ...] = ()
    wanted: Mapping[NestedKey, tuple[Any, Any]] = {
        OBSERVATION: observation,
        NEXT_OBSERVATION: observation,
        ACTION: (spec.action_shape, _torch_dtype(spec.action_dtype)),
        NEXT_REWARD: (scalar, torch.float32),
        NEXT_TERMINATED: (scalar, torch.bool),
    }
    for key, (shape, dtype) in wanted.items():
        column = dataset.tensor(key)
        if (tuple(column.shape[1:]), column.dtype) != (tuple(shape), dtype):
            found = f"{list(column.shape[1:])} {_name(column.dtype)}"
            words = f"its {key} is {found}; {spec.id} has {list(shape)} {_name(dtype)}"
            raise DatasetError(dataset.path, words)
    actions = dataset.tensor(ACTION)
    if spec.num_actions is not None and len(actions):
        low, high = (int(one) for one in actions.aminmax())
        if low < 0 or high >= spec.num_actions:
            words = f"its actions are from {low} to {high}; {spec.id} has those from 0 to {spec.num_actions - 1}"
            raise DatasetError(dataset.path, words)
    elif dataset.spec.get("action_low") is not None and dataset.spec.get("action_high") is not None:
        _check_bounds(dataset, spec)


def _check_bounds(dataset: Dataset, spec: EnvSpec) -> None:
    """Raise ``DatasetError`` where an action is none that the environment takes."""
    actions = dataset.tensor(ACTION)
    low, high = (torch.as_tensor(bound, dtype=actions.dtype) for bound in (spec.action_low, spec.action_high))
    beyond = sum(
        int((~((part >= low) & (part <= high))).flatten(1).any(1).sum()) for part in actions.split(ROWS_OF_A_PART)
    )
    if beyond:
        words = f"the actions of {beyond} of its {len(actions)} rows are beyond the bounds of {spec.id}"
        raise DatasetError(dataset.path, words)


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
