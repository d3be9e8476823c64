"""The work as a user of Hookline has it done: the command line, with CSV, MLflow, the progress bar and checkpoints.

Arguments: overrides, ``experiment=...`` first; ``saves``: clock how long each checkpoint blocks the loop.
"""

import json
import sys
import time
from pathlib import Path

from runner.config.main import main
from scripts.benchmark.meter import begin


def clock_saves() -> list[float]:
    """A list that gets how many milliseconds the loop stands still for each checkpoint while it trains."""
    from runner.config.experiment import Trainer

    milliseconds: list[float] = []
    save = Trainer._save_in_background

    def clocked(trainer: Trainer) -> None:
        started = time.perf_counter()
        save(trainer)
        milliseconds.append(1000 * (time.perf_counter() - started))

    Trainer._save_in_background = clocked  # type: ignore[method-assign, assignment]
    return milliseconds


work, meter, extra = begin()
saves = clock_saves() if "saves" in extra else []
code = main(
    [
        f"seed={work.seed}",
        f"total_frames={work.env_steps}",
        f"exploration.env_steps={work.exploration_steps}",
        *(text for text in extra if text != "saves"),
    ]
)
if code:
    sys.exit(code)
(record,) = Path("outputs").glob("*/*/run.json")
metrics = json.loads(record.read_text())["metrics"]
meter.extra["save_ms"] = saves
meter.write(metrics["eval/final_return_mean"], 0.0, "tensordict", "mlflow")
