"""The words every module shares: names of batch keys, what an environment looks like, and how far a run has come."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

OBSERVATION = "observation"
ACTION = "action"
TD_ERROR = "td_error"
ACTION_LOG_PROB = "action_log_prob"
"""Of each action under the policy that took it."""
ACTION_MASK = "action_mask"
"""Which actions can be taken; absent where all can."""
POLICY_OUTPUT = "policy_output"
"""What the network of the policy that took the action said; see ``runner.distributions``."""
STATE_VALUE = "state_value"
ADVANTAGE = "advantage"
KL = "kl"
"""How far the policy is from the one that took the action, by that action."""
VALUE_TARGET = "value_target"
MASK = ("collector", "mask")
"""Which rows of a batch were really played; absent where all were."""
IMPORTANCE_WEIGHT = "importance_weight"
"""What the loss of each sample is multiplied by; absent where all samples count alike."""
IS_INIT = "is_init"
"""Where a recurrent state has to begin anew."""
MEMORY = ("recurrent", "memory")
"""What a recurrent network remembers before each step."""
NEXT_OBSERVATION = ("next", "observation")
NEXT_REWARD = ("next", "reward")
NEXT_TERMINATED = ("next", "terminated")
NEXT_TRUNCATED = ("next", "truncated")
NEXT_DONE = ("next", "done")
NEXT_STEPS = ("next", "steps")
"""How many rewards an n-step transition sums; absent for one-step transitions."""
TRAJ_IDS = ("collector", "traj_ids")
"""Which trajectory a step is of, where the rows of a batch are not each one environment's; ``int64``."""
NEXT_ACTION_MASK = ("next", "action_mask")
NEXT_EPISODE_RETURN = ("next", "episode_return")
NEXT_EPISODE_LENGTH = ("next", "episode_length")

LARGEST_COUNT = 2**62

StateDict = dict[str, Any]


@dataclass(frozen=True)
class Deferred:
    """A value of a state that a checkpoint's writer works out in its own thread, while the run goes on.

    For what would hold up the run, such as pushing to the disk a file that the state refers to; the checkpoint counts
    only once it has been done.

    Args:
        work: returns what JSON can hold.
        name, mark: how far something had come whose parts checkpoints refer to; every checkpoint says it by that name.
        published: called once the checkpoint counts, with the marks of all checkpoints that there are then, from the
            least on; not where one of them has none by this name.
    """

    work: Callable[[], Any]
    published: Callable[[list[int]], None] = lambda marks: None
    name: str = ""
    mark: int = 0


@dataclass(frozen=True)
class EnvSpec:
    """Shapes, types and bounds of one environment; network sizes come from here alone.

    ``num_actions`` counts discrete actions; it is ``None`` where actions are vectors in ``[action_low, action_high]``.
    ``observation_high`` is the largest value of observations that are whole numbers, 255 for images.
    ``has_action_mask``: it says before each step which actions can be taken.
    """

    id: str
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype
    action_shape: tuple[int, ...]
    action_dtype: np.dtype
    num_actions: int | None = None
    action_low: np.ndarray | None = None
    action_high: np.ndarray | None = None
    frame_skip: int = 1
    max_episode_steps: int | None = None
    reward_threshold: float | None = None
    observation_high: float | None = None
    has_action_mask: bool = False


@dataclass
class Progress:
    """The only counters of a run. ``frames`` are env steps times the frame skip; ``seconds`` add up when resumed.

    ``axis`` names the one that says how far the run is: env steps, or updates where nothing is played.
    """

    env_steps: int = 0
    frames: int = 0
    updates: int = 0
    episodes: int = 0
    batches: int = 0
    seconds: float = 0.0
    frame_skip: int = 1
    axis: Literal["env_steps", "updates"] = field(default="env_steps", repr=False)

    @property
    def place(self) -> int:
        """How far the run is, on its axis."""
        return int(getattr(self, self.axis))

    @property
    def step(self) -> int:
        """Where the run is on the step axis of its loggers: frames, or updates where nothing is played."""
        return self.updates if self.axis == "updates" else self.frames

    @property
    def place_in_words(self) -> str:
        """For example ``env step 1,000``."""
        return f"{'update' if self.axis == 'updates' else 'env step'} {self.place:,}"

    def count(self, batch: TensorDictBase) -> None:
        """Count a raw collected batch ``[N, T]``, or one keyed by module id; rows that ``MASK`` marks do not count."""
        for part in parts_of(batch).values():
            self._count(part)
        self.batches += 1

    def _count(self, batch: TensorDictBase) -> None:
        mask = batch.get(MASK, None)
        env_steps = batch.batch_size.numel() if mask is None else int(mask.sum())
        done = batch.get(NEXT_DONE, None)
        if done is not None and mask is not None:
            done = done & mask
        self.env_steps += env_steps
        self.frames += env_steps * self.frame_skip
        self.episodes += int(torch.count_nonzero(done)) if done is not None else 0

    def state_dict(self) -> StateDict:
        """The counters; all else is configuration."""
        return {name: value for name, value in asdict(self).items() if name not in ("frame_skip", "axis")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.state_dict():
            if type(state[name]) not in (int, float) or not 0 <= state[name] < LARGEST_COUNT:
                raise ValueError(f"{name} = {state[name]!r:.40} is no count")
            setattr(self, name, state[name])


def place_of(counters: Mapping[str, Any], axis: str = "env_steps") -> Any:
    """Where on its axis a run was with these counters, or a row of metrics is; updates where nothing was played."""
    return counters.get(axis) or counters.get("updates", 0)


class Stage(NamedTuple):
    """Terms of a loss that one optimizer minimizes, over the networks that they move.

    Args:
        targets: the networks whose targets follow after each step of this stage; its own ones if not given.
        every: how often it has its turn, in updates; see ``learner.optimizations`` for other numbers.
    """

    terms: tuple[str, ...]
    networks: tuple[str, ...]
    targets: tuple[str, ...] | None = None
    every: int = 1


def as_key(path: str | Sequence[str]) -> NestedKey:
    """The key of an entry that was written as a name or as a list of names."""
    return path if isinstance(path, str) else path[0] if len(path) == 1 else tuple(path)


def played(batch: TensorDictBase, key: NestedKey, asked_by: str) -> Tensor:
    """An entry of a batch, without the rows that ``MASK`` marks invalid; a ``ConfigError`` where there is none."""
    values, mask = batch.get(key, None), batch.get(MASK, None)
    if not isinstance(values, Tensor):
        there = list(batch.keys(include_nested=True, leaves_only=True))
        raise ConfigError(f"{asked_by}: the batch has no {key}; it has {there}")
    return values if mask is None else values[mask]


def parts_of(batch: TensorDictBase) -> dict[str, Any]:
    """What a batch has of each module, by its id; a batch that is not keyed by module is one part without a name."""
    return {"": batch} if batch.batch_dims else dict(batch.items())


class Stateful(Protocol):
    """Anything a checkpoint can hold."""

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class Collector(Stateful, Protocol):
    """Yields batches ``[N, T]``, which look like ``batch``; one stays valid until the next is asked for.

    ``frames_per_batch`` is how many env steps that are; ``resume_mode`` how an episode under way is brought back.
    """

    batch: TensorDictBase
    frames_per_batch: int
    progress: "Progress"

    @property
    def resume_mode(self) -> str: ...

    def __iter__(self) -> Iterator[TensorDictBase]: ...

    def row_metrics(self) -> Mapping[str, float]: ...

    def update_policy_weights_(self) -> None: ...

    def shutdown(self) -> None: ...


class Extra(NamedTuple):
    """How many numbers a policy adds to each step: noise that it takes, outputs it records, and what it remembers."""

    noise: int = 0
    outputs: int = 0
    memory: int = 0


NO_EXTRA = Extra()


class Exploration(Stateful, Protocol):
    """Randomness added to a policy while it collects; see ``runner.exploration``.

    ``records``: what the network says is kept with each step, for losses that ask how likely an action was.
    """

    records: bool
    noise_size: int

    def plan(self, shape: tuple[int, int], env_steps: int, init_random_frames: int) -> Any: ...

    def explore(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray: ...

    def metrics(self, env_steps: int) -> Mapping[str, float]: ...


class Acting(Protocol):
    """A policy that plays one batch: called with the observations of each step in turn, and told when it is over."""

    def __call__(self, observation: np.ndarray, t: int) -> list[Any]: ...

    def finish(self) -> None: ...


class Actor(Stateful, Protocol):
    """Chooses actions for ``N`` environments at once; see ``runner.policy.Policy``."""

    spec: EnvSpec
    exploration: Exploration | None

    @property
    def extra(self) -> Extra: ...

    def begin(self, arrays: Any, planned: Any, memory: np.ndarray) -> Acting: ...

    def greedy(
        self, observation: np.ndarray, memory: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> list[Any]: ...

    def played(self, actions: np.ndarray) -> list[Any]: ...

    def describe(self, batch: TensorDictBase) -> None: ...

    def copy(self, device: str | None = None, explores: bool = False) -> "Actor": ...

    def tensors(self) -> list[Tensor]: ...


class DataSource(Stateful, Protocol):
    """Where the sub-batches of the updates come from.

    One that needs what the loss says of each sample names it in ``needs``; see :class:`Sampler`.
    """

    warmup: int

    def extend(self, batch: TensorDictBase) -> None: ...

    def optim_steps(self) -> int: ...

    def sample(self, batch: TensorDictBase) -> TensorDictBase: ...

    def update_priority(self, sub_batch: TensorDictBase) -> None: ...


class Sampler(Stateful, Protocol):
    """Which stored transitions an update sees; it remembers what it drew last, and loads after the storage has.

    Attributes:
        needs: per-sample outputs of the loss without which it cannot work.
        length: steps of the sequences it draws, as which a sub-batch is then shaped; 0 for single transitions.
        weight: importance weights ``[B]`` of what it drew last, if it draws some more often than others.
    """

    needs: tuple[str, ...]
    length: int
    weight: torch.Tensor | None

    def sample(self, size: int, batch_size: int) -> torch.Tensor: ...

    def extended(self, row: int, steps: int) -> None: ...

    def update_priority(self, priority: torch.Tensor) -> None: ...


class Logger(Stateful, Protocol):
    """Takes rows of the one metric stream; never able to stop a run.

    ``row`` maps metric names to floats; the keys of ``spec.CLOCKS`` in it are the row's place on the axes.
    """

    def log_hparams(self, parameters: Mapping[str, Any]) -> None: ...

    def log_row(self, row: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self, status: str) -> None: ...


CLOCKS = ("env_steps", "frames", "updates", "episodes")
"""The integer columns that every metric row begins with; ``frames`` is the step axis of the loggers."""


class Abandoned(Exception):
    """Work given up because the run is to stop; it is done anew when the run goes on."""


class HooklineError(Exception):
    """A failure whose message is all a user needs: shown as one line, without a traceback.

    ``go_on`` is what to type to go on, where there is something to go on from.
    """

    exit_code = 1
    go_on = ""


class ConfigError(HooklineError):
    """The configuration cannot be run."""

    exit_code = 2


class ContractError(ConfigError, TypeError):
    """A part does not have the methods, or its methods not the signatures, that its place asks for."""


class EnvFault(HooklineError):
    """An environment raised, hung, or returned what it does not declare; the message names it, episode and step."""


class CheckpointError(HooklineError):
    """A checkpoint cannot be written, found or trusted."""

    exit_code = 3
