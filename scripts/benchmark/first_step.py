"""An environment that writes down when it was first stepped, and the process's CPU seconds by then.

Into the file that ``HOOKLINE_FIRST_STEP`` names.
"""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class FirstStep(CartPoleEnv):
    """CartPole; its first step is late by the writing of a small file, all others are CartPole's own."""

    def step(self, action: Any) -> Any:
        Path(os.environ["HOOKLINE_FIRST_STEP"]).write_text(f"{time.time()} {time.process_time()}")
        del FirstStep.step
        return super().step(action)


gymnasium.register("FirstStep-v0", FirstStep, max_episode_steps=500)  # type: ignore[arg-type]
