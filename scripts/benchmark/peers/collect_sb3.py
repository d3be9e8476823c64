"""Collection alone by Stable-Baselines3's DummyVecEnv with its Monitor, and the same policy in plain torch."""

import json
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn import functional as F


def main(result: str, num_envs: int, steps: int) -> None:
    """Write env steps per second of CPU and of wall time."""
    torch.set_num_threads(1)
    env = DummyVecEnv([lambda: Monitor(gymnasium.make("CartPole-v1")) for _ in range(num_envs)])
    first, second, last = (torch.nn.Linear(*size) for size in ((4, 64), (64, 64), (64, 2)))
    observation = env.reset()
    generator = np.random.default_rng(0)

    def play(count: int) -> None:
        nonlocal observation
        with torch.inference_mode():
            for _ in range(count):
                x = torch.tanh(F.linear(torch.from_numpy(observation), first.weight, first.bias))
                x = torch.tanh(F.linear(x, second.weight, second.bias))
                best = F.linear(x, last.weight, last.bias).argmax(-1).numpy()
                is_random = generator.random(num_envs) < 0.05
                actions = np.where(is_random, generator.integers(2, size=num_envs), best)
                observation, _, _, _ = env.step(actions)

    play(steps // 10)
    cpu, wall = time.process_time(), time.perf_counter()
    play(steps)
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    Path(result).write_text(json.dumps({name: steps * num_envs / spent for name, spent in seconds.items()}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
