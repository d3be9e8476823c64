"""What a policy that acts at random sees of an environment."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from runner.envs.masks import mask_function


def random_observations(env: gymnasium.Env, steps: int, seed: int) -> np.ndarray:
    """``[steps, *observation]`` of random actions that can be taken, from one seeded reset on, in its own types."""
    env.action_space.seed(seed)
    observation: Any = env.reset(seed=seed)[0]
    masks, rows = mask_function(env), []
    for _ in range(steps):
        rows.append(np.array(observation))
        observation, _, terminated, truncated, _ = env.step(_sample(env.action_space, masks))
        if terminated or truncated:
            observation = env.reset()[0]
    return np.stack(rows)


def _sample(space: Any, masks: Callable[[], Any] | None) -> Any:
    return space.sample() if masks is None else space.sample(np.asarray(masks()).astype(np.int8))
