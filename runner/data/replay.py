"""The replay buffer as a source of sub-batches: storage x sampler x n-step."""

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.sampler import UniformSampler
from runner.data.storage import TensorStorage
from runner.returns import n_step
from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TD_ERROR,
    StateDict,
)

KEYS: tuple[NestedKey, ...] = (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED)
"""What a sub-batch holds; stored is ``NEXT_DONE`` as well, where n-step windows end."""


class Replay:
    """Experience replay (Lin 1992): every collected batch goes in, random transitions come out.

    The sub-batch ``[B]`` is overwritten by the next ``sample``.

    Args:
        storage, sampler: where transitions are and which are drawn.
        batch_size: transitions of a sub-batch.
        optim_steps: updates for each collected batch.
        warmup: env steps before the first update.
        n_step: rewards a sampled transition sums before it bootstraps.
        gamma: discount within those n steps.
    """

    def __init__(
        self,
        storage: TensorStorage,
        sampler: UniformSampler,
        *,
        batch_size: int,
        optim_steps: int = 1,
        warmup: int = 0,
        n_step: int = 1,
        gamma: float = 0.99,
    ) -> None:
        self.storage, self.sampler = storage, sampler
        self.batch_size, self.warmup = batch_size, warmup
        self.n, self.gamma = n_step, gamma
        self._optim_steps = optim_steps
        self._sub_batch: TensorDict | None = None
        self._rows: dict[NestedKey, Tensor] = {}

    def check(self, num_envs: int, steps: int) -> None:
        """Raise ``ValueError`` if batches ``[num_envs, steps]`` cannot be kept."""
        self.storage.check(num_envs, steps)

    def extend(self, batch: TensorDictBase) -> None:
        self.storage.extend(batch)

    def optim_steps(self) -> int:
        return self._optim_steps

    def sample(self, batch: TensorDictBase | None = None) -> TensorDict:
        """Draw a sub-batch ``[B]``; what was just collected (``batch``) is not looked at."""
        if not len(self.storage):
            raise RuntimeError("the replay buffer is empty: extend it before the first sample")
        sub_batch = self._sub_batch if self._sub_batch is not None else self._make_sub_batch()
        indices = self.sampler.sample(len(self.storage), self.batch_size).to(self.storage.device)
        if self.n == 1:
            self._gather(indices, self._rows)
        else:
            self._gather_n_step(indices)
        return sub_batch

    def _make_sub_batch(self) -> TensorDict:
        flat = self.storage.flat
        self._rows = {key: flat[key].new_empty((self.batch_size, *flat[key].shape[1:])) for key in KEYS}
        self._sub_batch = TensorDict(batch_size=[self.batch_size], device=self.storage.device)
        for key, rows in self._rows.items():
            self._sub_batch.set(key, rows)
        return self._sub_batch

    def _gather(self, indices: Tensor, into: dict[NestedKey, Tensor]) -> None:
        for key, rows in into.items():
            torch.index_select(self.storage.flat[key], 0, indices, out=rows)

    def _gather_n_step(self, indices: Tensor) -> None:
        assert self._sub_batch is not None
        flat = self.storage.flat
        window = n_step(flat[NEXT_REWARD], flat[NEXT_DONE], self._windows(indices), self.n, self.gamma)
        now: dict[NestedKey, Tensor] = {key: self._rows[key] for key in (OBSERVATION, ACTION)}
        self._gather(indices, now)
        self._gather(window.last, {key: self._rows[key] for key in (NEXT_OBSERVATION, NEXT_TERMINATED)})
        self._rows[NEXT_REWARD].copy_(window.reward)
        self._sub_batch.set(NEXT_STEPS, window.steps)

    def _windows(self, indices: Tensor) -> Tensor:
        """The flat rows of each n-step window ``[B, n]``; -1 from where the newest stored row has been passed."""
        storage = self.storage
        row, env = indices // storage.num_envs, indices % storage.num_envs
        newer_rows = (storage.cursor - 1 - row) % storage.rows
        ahead = torch.arange(self.n, device=indices.device)
        rows = (row[:, None] + ahead) % storage.rows * storage.num_envs + env[:, None]
        return torch.where(ahead <= newer_rows[:, None], rows, -1)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        """Tell the sampler how surprising the sub-batch was, by the ``td_error`` that the loss left in it."""
        if TD_ERROR in sub_batch.keys():
            self.sampler.update_priority(sub_batch.get(TD_ERROR))

    def memory_bytes(self, row: TensorDictBase) -> int:
        """What the full storage will take, given one collected batch ``[N, T]``."""
        return sum(row.get(key)[0, 0].nbytes for key in self.storage.keys) * self.storage.capacity

    def state_dict(self) -> StateDict:
        return {"storage": self.storage.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.storage.load_state_dict(state["storage"])
        self.sampler.load_state_dict(state["sampler"])
