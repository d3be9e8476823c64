"""How a policy tries what it would not choose: drawn a whole batch ahead, from a stream of its own."""

from typing import Any, NamedTuple

import numpy as np

from runner.spec import EnvSpec, StateDict
from runner.types import Fraction, NonNegativeFloat


class Plan(NamedTuple):
    """Which of the next ``[T, N]`` actions are random, and what those would be ``[T, N, ...]``."""

    is_random: np.ndarray
    actions: np.ndarray


class EpsilonGreedy:
    """A random action with probability epsilon, which falls on a straight line over ``env_steps`` (Mnih et al. 2015).

    Epsilon depends on the number of env steps alone; the generator is all there is to save.
    """

    def __init__(
        self, generator: np.random.Generator, spec: EnvSpec, start: Fraction, end: Fraction, env_steps: NonNegativeFloat
    ) -> None:
        if spec.num_actions is None:
            raise ValueError(f"epsilon-greedy needs discrete actions; {spec.id} takes vectors")
        self.generator, self.num_actions = generator, spec.num_actions
        self.start, self.end, self.env_steps = start, end, env_steps

    def value(self, env_steps: int | np.ndarray) -> Any:
        """Epsilon at that many env steps (or at each of them)."""
        return np.interp(env_steps, (0, max(self.env_steps, 1e-9)), (self.start, self.end))

    def plan(self, shape: tuple[int, int], env_steps: int, init_random_frames: int) -> Plan:
        """Draw the randomness of the next ``[T, N]`` actions, the first of which is number ``env_steps``."""
        uniform = self.generator.random(shape)
        actions = self.generator.integers(self.num_actions, size=shape)
        if max(self.env_steps, init_random_frames) <= env_steps:
            return Plan(uniform < self.end, actions)
        first_of_step = env_steps + shape[1] * np.arange(shape[0])
        is_random = uniform < self.value(first_of_step)[:, None]
        return Plan(is_random | (first_of_step < init_random_frames)[:, None], actions)

    def metrics(self, env_steps: int) -> dict[str, float]:
        return {"train/epsilon": float(self.value(env_steps))}

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.bit_generator.state = state["generator"]
