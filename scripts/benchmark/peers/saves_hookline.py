"""How long the first checkpoint of a large replay buffer takes, and the second after little more has come.

Arguments: result file, storage (tensor or memmap), rows.
"""

import json
import sys
import time
from pathlib import Path

import torch
from tensordict import TensorDict

from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.check import check
from runner.config.experiment import open_run

CHUNK = 100_000
ADDED = 10_000
"""Rows between the two checkpoints: what a run adds by default."""

result, storage, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
overrides = ["algo=dqn", "env=cartpole", "logger=[]", f"source.storage={storage}", f"source.capacity={rows}"]
config = check(parse_arguments(overrides)).config
folder = Path("run")
folder.mkdir()
experiment = assemble(config, open_run(config, folder, resume=False, algo="dqn", env="cartpole"))
trainer = experiment.trainer


def add(count: int) -> None:
    """Add so many rows of random numbers, as one batch ``[1, count]``."""
    flag = torch.zeros(1, count, dtype=torch.bool)
    following = {"observation": torch.randn(1, count, 4), "reward": torch.ones(1, count)}
    following |= {"terminated": flag, "truncated": flag, "done": flag}
    row = {"observation": torch.randn(1, count, 4), "action": torch.zeros(1, count, dtype=torch.int64)}
    trainer.source.extend(TensorDict({**row, "next": following}, batch_size=[1, count]))
    trainer.progress.env_steps += count


def save() -> float:
    started = time.perf_counter()
    trainer.save_trainer(force_save=True)
    return time.perf_counter() - started


for _ in range(rows // CHUNK):
    add(CHUNK)
first = save()
add(ADDED)
second = save()
add(ADDED)
result.write_text(json.dumps({"first": first, "second": second, "third": save()}))
