"""The work as a user of Hookline has it done: the command line, with CSV, MLflow, the progress bar and checkpoints.

Arguments: overrides, ``experiment=...`` first.
"""

import json
import sys
from pathlib import Path

from runner.config.main import main
from scripts.benchmark.meter import begin

work, meter, extra = begin()
if work.epochs:
    own = []
elif work.env_id == "CartPole-v1":
    own = [f"exploration.env_steps={work.exploration_steps}"]
else:
    own = [f"collector.init_random_frames={work.learning_starts}", f"source.warmup={work.learning_starts}"]
code = main([f"seed={work.seed}", f"total_frames={work.env_steps}", *own, *extra])
if code:
    sys.exit(code)
(record,) = Path("outputs").glob("*/*/run.json")
metrics = json.loads(record.read_text())["metrics"]
meter.write(metrics["eval/final_return_mean"], 0.0, "tensordict", "mlflow")
