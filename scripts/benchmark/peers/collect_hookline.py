"""Collection alone by our collectors: ``in_process``, or by so many worker processes, of CartPole or a slow one."""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from runner.builders import (
    EpsilonGreedy,
    InProcessCollector,
    Streams,
    SyncCollector,
    make_environment,
    make_policy,
    make_q_network,
)


class Slow(CartPoleEnv):
    """CartPole whose every step takes a millisecond of CPU time."""

    def step(self, action: Any) -> Any:
        end = time.thread_time() + 1e-3
        while time.thread_time() < end:
            pass
        return super().step(action)


def main(result: str, env: str, processes: int, num_envs: int, frames_per_batch: int, batches: int) -> None:
    """Write env steps per second of CPU and of wall time, after a first batch that is not counted."""
    torch.set_num_threads(1)
    streams = Streams(0)
    streams.seed_globals("networks")
    make = {"make": lambda: gymnasium.wrappers.TimeLimit(Slow(), 500)} if env == "slow" else {"id": "CartPole-v1"}
    environment = make_environment(streams=streams, num_envs=num_envs, **make)
    networks = make_q_network(environment.spec, [64, 64], "tanh")
    exploration = EpsilonGreedy(streams.numpy("exploration"), environment.spec, 0.05, 0.05, 0)
    policy = make_policy(networks, environment.spec, exploration)
    make_collector: Any = partial(SyncCollector, num_collectors=processes) if processes else InProcessCollector
    collector = make_collector(environment, policy, frames_per_batch)
    playing = iter(collector)
    next(playing)
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(batches):
        next(playing)
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    collector.shutdown()
    rates = {name: batches * frames_per_batch / spent for name, spent in seconds.items()}
    Path(result).write_text(json.dumps({**rates, "batch_us": seconds["wall"] / batches * 1e6}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
