"""Stable-Baselines3's replay buffer, whose batches are torch tensors."""

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.buffers import ReplayBuffer

from scripts.benchmark.loops import ACTION, BATCH_SIZE, CAPACITY, OBSERVATION, measure

torch.set_num_threads(1)
spaces = [Box(-1, 1, (width,), np.float32) for width in (OBSERVATION, ACTION)]
buffer = ReplayBuffer(CAPACITY, *spaces, device="cpu", handle_timeout_termination=False)
observation, following = np.random.randn(2, 1, OBSERVATION).astype(np.float32)
action, reward, is_over = np.zeros((1, ACTION), np.float32), np.ones(1, np.float32), np.zeros(1, np.float32)
measure(
    lambda: buffer.add(observation, following, action, reward, is_over, [{}]),
    lambda: buffer.sample(BATCH_SIZE),
    "stable_baselines3",
)
