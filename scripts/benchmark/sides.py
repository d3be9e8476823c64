"""Two variants of one run in one process, a stretch of each in turn, many times: for costs of a few per cent.

A machine's speed drifts by more than that within a minute; two stretches beside each other drift together.
Arguments: the file for the result, and an ``Order`` as JSON.
"""

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from runner.config.arguments import parse_arguments
from runner.config.check import check
from scripts.benchmark.rates import begin_in


@dataclass(frozen=True)
class Order:
    """Overrides of each variant, env steps before the first stretch, and of each stretch."""

    variants: list[list[str]]
    warm_up: int
    env_steps: int
    pairs: int


class Enough(Exception):
    """A stretch is over."""


class Side:
    """One variant, which trains when it is told to, and without end."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        folder.mkdir()
        config = check(parse_arguments([*overrides, "total_frames=1000000000"])).config
        torch.set_num_threads(config["threads"])
        self.trainer = begin_in(folder, config).trainer
        self.trainer.register_op("post_steps_log", self._stop)
        self.save_ms: list[float] = []
        self._save, self._until = self.trainer._save_in_background, 0
        self.trainer._save_in_background = self._clocked_save  # type: ignore[method-assign]

    def _stop(self, batch: TensorDictBase) -> None:
        if self.trainer.progress.env_steps >= self._until:
            raise Enough

    def _clocked_save(self) -> None:
        started = time.perf_counter()
        self._save()
        self.save_ms.append(1000 * (time.perf_counter() - started))

    def go(self, env_steps: int) -> dict[str, float]:
        """Train so far; what is written in the background meanwhile is part of it."""
        self._until = self.trainer.progress.env_steps + env_steps
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.suppress(Enough):
            self.trainer.train()
        if self.trainer.checkpoint is not None:
            self.trainer.checkpoint.finish()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(order: Order) -> dict[str, Any]:
    sides = [Side(Path(f"side-{index}"), overrides) for index, overrides in enumerate(order.variants)]
    for side in sides:
        side.go(order.warm_up)
        side.save_ms.clear()
    taken: list[list[dict[str, float]]] = [[] for _ in sides]
    for pair in range(order.pairs):
        for index in range(len(sides)) if pair % 2 else reversed(range(len(sides))):
            taken[index].append(sides[index].go(order.env_steps))
    for side in sides:
        side.trainer.metrics.close("done")
    return {"stretches": taken, "save_ms": [side.save_ms for side in sides]}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(Order(**json.loads(sys.argv[2])))))
