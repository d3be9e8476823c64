"""How a policy tries what it would not choose: drawn a whole batch ahead, from a stream of its own."""

from typing import Any, NamedTuple

import numpy as np

from runner.distributions import Argmax, Distribution, bounds, is_bounded
from runner.spec import EnvSpec, StateDict
from runner.types import Fraction, NonNegativeFloat


class Plan(NamedTuple):
    """Which of the next ``[T, N]`` actions are random, what those would be ``[T, N, ...]``, and noise ``[T, N, K]``."""

    is_random: np.ndarray
    actions: np.ndarray
    noise: np.ndarray


class Exploring:
    """What all explorations share: a generator, which is all there is to save, and actions at random.

    Attributes:
        records: keep with each step what the network said.
        noise_size: numbers of noise that :meth:`explore` takes for an action.
    """

    records = False
    noise_size = 0

    def __init__(self, generator: np.random.Generator, spec: EnvSpec, distribution: Distribution) -> None:
        self.generator, self.spec, self.distribution = generator, spec, distribution

    def plan(self, shape: tuple[int, int], env_steps: int, init_random_frames: int) -> Plan:
        """Draw the randomness of the next ``[T, N]`` actions, the first of which is number ``env_steps``."""
        is_random = np.broadcast_to(_numbers(shape, env_steps)[:, None] < init_random_frames, shape)
        actions = np.zeros((*shape, *self.spec.action_shape), self.spec.action_dtype)
        if is_random.any():
            actions = self.random_actions(shape)
        return Plan(is_random, actions, self.draw(shape))

    def random_actions(self, shape: tuple[int, int]) -> np.ndarray:
        """``[T, N, ...]``, each action as likely as any other."""
        if self.spec.num_actions is not None:
            return self.generator.integers(self.spec.num_actions, size=shape)
        low, high = bounds(self.spec)
        if not is_bounded(low, high):
            raise ValueError("collector.init_random_frames: actions without bounds cannot be drawn at random")
        uniform = self.generator.random((*shape, low.size), dtype=np.float32)
        return (low + (high - low) * uniform).reshape(*shape, *self.spec.action_shape)

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        """Noise ``[T, N, noise_size]``."""
        return np.empty((*shape, 0), np.float32)

    def explore(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions by what the network said ``[N, size]`` and noise ``[N, noise_size]``."""
        return self.distribution.mode(outputs)

    def metrics(self, env_steps: int) -> dict[str, float]:
        return {}

    def state_dict(self) -> StateDict:
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: StateDict) -> None:
        self.generator.bit_generator.state = state["generator"]


class EpsilonGreedy(Exploring):
    """A random action with probability epsilon, which falls on a straight line over ``env_steps`` (Mnih et al. 2015).

    Epsilon depends on the number of env steps alone.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        spec: EnvSpec,
        start: Fraction,
        end: Fraction,
        env_steps: NonNegativeFloat,
        distribution: Distribution | None = None,
    ) -> None:
        if spec.num_actions is None:
            raise ValueError(f"epsilon-greedy needs discrete actions; {spec.id} takes vectors")
        super().__init__(generator, spec, distribution or Argmax(spec.num_actions))
        self.start, self.end, self.env_steps = start, end, env_steps
        self.noise_size = spec.num_actions if spec.has_action_mask else 0

    def value(self, env_steps: int | np.ndarray) -> Any:
        """Epsilon at that many env steps (or at each of them)."""
        return np.interp(env_steps, (0, max(self.env_steps, 1e-9)), (self.start, self.end))

    def plan(self, shape: tuple[int, int], env_steps: int, init_random_frames: int) -> Plan:
        """Draw the randomness of the next ``[T, N]`` actions, the first of which is number ``env_steps``."""
        uniform = self.generator.random(shape)
        actions, noise = self.random_actions(shape), self.draw(shape)
        if max(self.env_steps, init_random_frames) <= env_steps:
            return Plan(uniform < self.end, actions, noise)
        numbers = _numbers(shape, env_steps)
        is_random = uniform < self.value(numbers)[:, None]
        return Plan(is_random | (numbers < init_random_frames)[:, None], actions, noise)

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        """Where not all actions can be taken: of those that can, the one with the largest number is the random one."""
        return self.generator.random((*shape, self.noise_size), dtype=np.float32)

    def metrics(self, env_steps: int) -> dict[str, float]:
        return {"train/epsilon": float(self.value(env_steps))}


class Sampled(Exploring):
    """Actions are drawn from the policy's own distribution."""

    records = True

    def __init__(self, generator: np.random.Generator, spec: EnvSpec, distribution: Distribution) -> None:
        super().__init__(generator, spec, distribution)
        self.noise_size = distribution.noise_size
        if not self.noise_size:
            raise ValueError("exploration=sampled needs a network that says how likely each action is, as actor_critic")

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        return self.distribution.draw(self.generator, shape)

    def explore(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return self.distribution.sample(outputs, noise)


class AdditiveNoise(Exploring):
    """Normal noise added to the policy's action, then clipped to the bounds (Fujimoto et al. 2018).

    Args:
        scale: standard deviation, in half widths of the bounds.
    """

    def __init__(
        self, generator: np.random.Generator, spec: EnvSpec, distribution: Distribution, scale: NonNegativeFloat = 0.1
    ) -> None:
        super().__init__(generator, spec, distribution)
        self._low, self._high = bounds(spec)
        self._deviation = (scale * (self._high - self._low) / 2).astype(np.float32)
        self.noise_size = self._low.size

    def draw(self, shape: tuple[int, int]) -> np.ndarray:
        return self.generator.standard_normal((*shape, self.noise_size), dtype=np.float32)

    def explore(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return np.clip(self.distribution.mode(outputs) + self._deviation * noise, self._low, self._high)


def _numbers(shape: tuple[int, int], env_steps: int) -> np.ndarray:
    """``[T]``: what number of env step the first action of each row is."""
    return env_steps + shape[1] * np.arange(shape[0])
