"""The replay buffer as a source of sub-batches: storage x sampler x n-step."""

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.storage import TensorStorage
from runner.data.windows import windows
from runner.returns import n_step
from runner.spec import (
    ACTION,
    ACTION_MASK,
    IMPORTANCE_WEIGHT,
    IS_INIT,
    NEXT_ACTION_MASK,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TD_ERROR,
    HooklineError,
    Sampler,
    StateDict,
)

KEYS: tuple[NestedKey, ...] = (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED)
"""What a sub-batch holds; stored is ``NEXT_DONE`` as well, where n-step windows end."""
MASKS: tuple[NestedKey, ...] = (ACTION_MASK, NEXT_ACTION_MASK)
"""What it holds besides, of environments that say which actions can be taken."""


class Replay:
    """Experience replay (Lin 1992): every collected batch goes in, random transitions come out.

    The sub-batch ``[B]``, or ``[B / L, L]`` of sequences, is overwritten by the next ``sample``. With n-step every
    step of a sequence has its own n rewards.

    Args:
        storage, sampler: where transitions are and which are drawn.
        batch_size: transitions of a sub-batch.
        optim_steps: updates for each collected batch.
        warmup: env steps before the first update.
        n_step: rewards a sampled transition sums before it bootstraps.
        gamma: discount within those n steps.

    Attributes:
        is_fixed: in a mixture, collected batches do not go in.
    """

    is_fixed = False

    def __init__(
        self,
        storage: TensorStorage,
        sampler: Sampler,
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
        self._transition: dict[NestedKey, Tensor] = {}

    def check(self, num_envs: int, steps: int) -> None:
        """Raise ``ValueError`` if batches ``[num_envs, steps]`` cannot be kept."""
        self.storage.check(num_envs, steps)

    @property
    def needs(self) -> tuple[str, ...]:
        """Per-sample outputs of the loss without which it cannot work."""
        return self.sampler.needs

    def extend(self, batch: TensorDictBase) -> None:
        row = self.storage.cursor
        self.storage.extend(batch)
        self.sampler.extended(row, batch.batch_size[1])

    def optim_steps(self) -> int:
        return self._optim_steps

    def sample(self, batch: TensorDictBase | None = None) -> TensorDict:
        """Draw a sub-batch; what was just collected (``batch``) is not looked at."""
        if not len(self.storage):
            raise RuntimeError("the replay buffer is empty: extend it before the first sample")
        sub_batch = self._sub_batch if self._sub_batch is not None else self._make_sub_batch()
        indices = self.sampler.sample(len(self.storage), self.batch_size).to(self.storage.device)
        if self.n == 1:
            self._gather(indices, self._transition)
        else:
            self._gather_n_step(indices)
        if self.sampler.weight is not None:
            self._rows[IMPORTANCE_WEIGHT].copy_(self.sampler.weight)
        if self.needs and TD_ERROR in sub_batch.keys():
            sub_batch.del_(TD_ERROR)  # of the last update: the next one has to give its own
        return sub_batch

    def _make_sub_batch(self) -> TensorDict:
        device, length = self.storage.device, self.sampler.length
        flat = self.storage.flat
        keys = [*KEYS, *(key for key in MASKS if key in flat)]
        self._transition = {key: flat[key].new_empty((self.batch_size, *flat[key].shape[1:])) for key in keys}
        self._rows = dict(self._transition)
        if self.sampler.weight is not None:
            self._rows[IMPORTANCE_WEIGHT] = torch.empty(self.batch_size, device=device)
        if self.n > 1:
            self._rows[NEXT_STEPS] = torch.empty(self.batch_size, dtype=torch.int64, device=device)
        if length:
            self._rows[IS_INIT] = torch.arange(self.batch_size, device=device) % length == 0
        shape = [self.batch_size // length, length] if length else [self.batch_size]
        self._sub_batch = TensorDict(batch_size=shape, device=device)
        for key, rows in self._rows.items():
            self._sub_batch.set(key, rows.view(*shape, *rows.shape[1:]))
        return self._sub_batch

    def _gather(self, indices: Tensor, into: dict[NestedKey, Tensor]) -> None:
        for key, rows in into.items():
            self.storage.gather(key, indices, rows)

    def _gather_n_step(self, indices: Tensor) -> None:
        flat, rows = self.storage.flat, self._rows
        window = n_step(flat[NEXT_REWARD], flat[NEXT_DONE], windows(self.storage, indices, self.n), self.n, self.gamma)
        first, last = (OBSERVATION, ACTION, ACTION_MASK), (NEXT_OBSERVATION, NEXT_TERMINATED, NEXT_ACTION_MASK)
        self._gather(indices, {key: rows[key] for key in first if key in rows})
        self._gather(window.last, {key: rows[key] for key in last if key in rows})
        rows[NEXT_REWARD].copy_(window.reward)
        rows[NEXT_STEPS].copy_(window.steps)

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        """Tell the sampler how surprising the sub-batch was, by the ``td_error`` that the loss left in it."""
        missing = [key for key in self.needs if key not in sub_batch.keys()]
        if missing:
            raise HooklineError(
                f"source: no {missing[0]} in the sub-batch after the loss, so its sampler learns no priorities: the "
                "loss has to give one for each sample, and hooks have to hand the sub-batch itself on"
            )
        if self.needs:
            self.sampler.update_priority(sub_batch.get(TD_ERROR))

    def memory_bytes(self, row: TensorDictBase) -> int:
        """What the full storage will take, given one collected batch ``[N, T]``."""
        return sum(row.get(key)[0, 0].nbytes for key in self.storage.keys_in(row)) * self.storage.capacity

    def state_dict(self) -> StateDict:
        return {"storage": self.storage.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.storage.load_state_dict(state["storage"])
        self.sampler.load_state_dict(state["sampler"])
