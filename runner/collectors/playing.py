"""How a policy plays one batch in environments that step together."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from runner.collectors.arrays import Arrays, Planned
from runner.spec import Actor, EnvSpec, StateDict


class VectorEnvironment(Protocol):
    """Environments that step together; see ``runner.envs.vector.Environment``."""

    spec: EnvSpec
    num_envs: int
    observation: np.ndarray
    mask: np.ndarray
    resume_mode: str

    @property
    def begins(self) -> np.ndarray: ...

    def complete(self) -> None: ...

    def part(self, first: int, num_envs: int) -> "VectorEnvironment": ...

    def start(self) -> None: ...

    def step(self, actions: list[Any], arrays: Any, t: int) -> None: ...

    def mark(self) -> None: ...

    def roll_back(self) -> None: ...

    def check_bounds(self, arrays: Any) -> None: ...

    def row_metrics(self) -> dict[str, float]: ...

    def close(self) -> None: ...

    def state_dict(self) -> StateDict: ...

    def marked_state(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...

    def count_faults(self, counts: dict[str, int]) -> None: ...

    def joined(self, states: Sequence[StateDict]) -> StateDict: ...

    def share(self, state: StateDict, first: int, num_envs: int) -> StateDict: ...


def play(environment: VectorEnvironment, policy: Actor, arrays: Arrays, planned: Planned, memory: np.ndarray) -> None:
    """Fill ``arrays``; ``memory`` ``[N, ...]`` is what the policy remembers of each episode, and is moved on."""
    if memory.size:
        memory[environment.begins] = 0  # also those that could not be brought back, and begin anew
    act, has_mask = policy.begin(arrays, planned, memory), environment.mask.size > 0
    for t in range(len(arrays.reward)):
        arrays.observation[t] = environment.observation
        if has_mask:
            arrays.action_mask[t] = environment.mask
        environment.step(act(environment.observation, t), arrays, t)
    act.finish()
    np.logical_or(arrays.terminated, arrays.truncated, out=arrays.done)


def plan_of(policy: Actor, shape: tuple[int, ...], env_steps: int, init_random_frames: int) -> Planned:
    """The randomness of the next ``[T, N]`` actions, the first of which is number ``env_steps``, drawn at once."""
    steps, num_envs = shape
    if policy.exploration is None:
        none = np.empty((steps, num_envs, 0), np.float32)
        return Planned([[False] * num_envs] * steps, [[None] * num_envs] * steps, none)
    plan = policy.exploration.plan((steps, num_envs), env_steps, init_random_frames)
    return Planned.of(plan.is_random, plan.actions, plan.noise, policy.spec)
