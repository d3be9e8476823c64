"""How a policy plays one batch in environments that step together."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from runner.collectors.arrays import Arrays, Planned
from runner.spec import Actor, EnvSpec, StateDict

Greedy = Callable[[np.ndarray], list[Any]]
"""The best actions for observations ``[N, ...]``."""


class VectorEnvironment(Protocol):
    """Environments that step together; see ``runner.envs.vector.Environment``."""

    spec: EnvSpec
    num_envs: int
    observation: np.ndarray
    resume_mode: str

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


def play(environment: VectorEnvironment, greedy: Greedy, arrays: Arrays, planned: Planned) -> None:
    """Fill ``arrays``: each action is the planned random one, or what is ``greedy`` for the observation."""
    played = []
    for t, (is_random, random_actions) in enumerate(zip(*planned, strict=True)):
        arrays.observation[t] = environment.observation
        actions = _chosen(environment, greedy, is_random, random_actions)
        played.append(actions)
        environment.step(actions, arrays, t)
    arrays.action[:] = played
    np.logical_or(arrays.terminated, arrays.truncated, out=arrays.done)


def _chosen(
    environment: VectorEnvironment,
    greedy: Greedy,
    is_random: list[bool],
    random_actions: list[Any],
) -> list[Any]:
    if all(is_random):
        return random_actions
    best = greedy(environment.observation)
    if not any(is_random):
        return best
    return [other if chosen else one for chosen, other, one in zip(is_random, random_actions, best, strict=True)]


def plan_of(policy: Actor, shape: tuple[int, ...], env_steps: int, init_random_frames: int) -> Planned:
    """The randomness of the next ``[T, N]`` actions, the first of which is number ``env_steps``, drawn at once."""
    steps, num_envs = shape
    if policy.exploration is None:
        return [[False] * num_envs] * steps, [[None] * num_envs] * steps
    plan = policy.exploration.plan((steps, num_envs), env_steps, init_random_frames)
    return plan.is_random.tolist(), plan.actions.tolist()
