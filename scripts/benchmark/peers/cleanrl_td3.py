"""The work in CleanRL's own ``td3_continuous_action.py``, unmodified; argument: where that file is."""

import runpy
import sys
from pathlib import Path

import numpy as np
import torch

from scripts.benchmark.meter import begin, one_thread

work, meter, (name,) = begin()
one_thread()
file = Path(name)
sys.path.insert(0, str(file.parents[1]))  # beside cleanrl/ stands the package cleanrl_utils
sys.argv = [
    str(file),
    f"--env-id={work.env_id}",
    f"--seed={work.seed}",
    f"--total-timesteps={work.env_steps}",
    f"--learning-rate={work.learning_rate}",
    f"--buffer-size={work.buffer_size}",
    f"--gamma={work.gamma}",
    f"--batch-size={work.batch_size}",
    f"--learning-starts={work.learning_starts}",
]
actor = runpy.run_path(str(file), run_name="__main__")["actor"]


@torch.no_grad()
def act(observation):
    return actor(torch.as_tensor(observation, dtype=torch.float32)).numpy().astype(np.float32)


meter.finish(act, "tensorboard")
