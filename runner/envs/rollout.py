"""What a policy that acts at random sees of an environment."""

from typing import Any

import gymnasium
import numpy as np


def random_observations(env: gymnasium.Env, steps: int, seed: int) -> np.ndarray:
    """``[steps, *observation]`` of random actions, from one seeded reset on; the environment's own types."""
    env.action_space.seed(seed)
    observation: Any = env.reset(seed=seed)[0]
    rows = []
    for _ in range(steps):
        rows.append(np.array(observation))
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            observation = env.reset()[0]
    return np.stack(rows)
