"""Collecting without learning: against SB3, and worker processes against one another and against none."""

import sys
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark.rounds import Process, Result, alternate, machine, median, paired, run, table
from scripts.benchmark.setup import is_ready, python_of

NUM_ENVS, STEPS = 8, 12_000
HERE = Path(sys.executable)


def measure_collection(rounds: int) -> None:
    """Print a table for each of the three questions."""
    print(f"\n{machine()}, {rounds} rounds, one thread a process")
    _against_peer(rounds)
    _workers(rounds)
    _overhead(rounds)


def _against_peer(rounds: int) -> None:
    print(f"\n{NUM_ENVS} CartPoles, 64-64 policy, in one process; env steps per CPU second")
    kinds = {"hookline": _ours("cartpole", 0, NUM_ENVS, 64 * NUM_ENVS, STEPS // 64)}
    if is_ready("sb3"):
        peer = Process(python_of("sb3"), "scripts.benchmark.peers.collect_sb3")
        kinds["sb3"] = lambda index: run(peer, lambda folder: [str(folder / "result.json"), str(NUM_ENVS), str(STEPS)])
    else:
        print("without SB3's: python scripts/bench.py --setup --only sb3 makes its environment")
    _print("cpu", alternate(kinds, rounds))


def _workers(rounds: int) -> None:
    print("\n4 environments that take 1 ms of CPU a step, batches of 64; env steps per second")
    _print("wall", alternate({f"{n} worker{'s' * (n > 1)}": _ours("slow", n, 4, 64, 16) for n in (2, 1)}, rounds))


def _overhead(rounds: int) -> None:
    """What a batch costs more when it is played by a process of its own."""
    kinds = {"worker": _ours("cartpole", 1, 1, 8, 3000), "in process": _ours("cartpole", 0, 1, 8, 3000)}
    measured = {name: [one["batch_us"] for one in results] for name, results in alternate(kinds, rounds).items()}
    more = [a - b for a, b in zip(measured["worker"], measured["in process"], strict=True)]
    print(f"\na batch of 8 steps in one worker process takes {median(more):.0f} us more than in the run's own "
          f"({', '.join(f'{value:.0f}' for value in more)})")  # fmt: skip


def _ours(env: str, processes: int, num_envs: int, frames: int, batches: int) -> Callable[[int], Result]:
    process = Process(HERE, "scripts.benchmark.peers.collect_hookline")
    words = [env, *map(str, (processes, num_envs, frames, batches))]
    return lambda index: run(process, lambda folder: [str(folder / "result.json"), *words])


def _print(key: str, measured: dict[str, list[Result]]) -> None:
    first = next(iter(measured.values()))
    rows = []
    for name, results in measured.items():
        ratio = median(paired([one[key] for one in results], [one[key] for one in first]))
        rows.append([name, f"{median([one[key] for one in results]):,.0f}", f"{ratio:.2f}"])
    print(table(["", "env steps/s", f"{next(iter(measured))}: x as many"], rows))
