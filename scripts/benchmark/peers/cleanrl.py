"""The work in CleanRL's own ``dqn.py``, unmodified; argument: where that file is."""

import runpy
import sys
from pathlib import Path

import torch
from torch import nn

from scripts.benchmark.meter import begin, one_thread

WRITTEN_HIDDEN = [120, 84]

work, meter, extra = begin()
one_thread()
file = Path(extra[0])
sys.path.insert(0, str(file.parents[1]))  # beside cleanrl/ stands the package cleanrl_utils
if work.hidden != WRITTEN_HIDDEN:  # the widths stand in the file: they are replaced where layers are made
    linear, widths = nn.Linear, dict(zip(WRITTEN_HIDDEN, work.hidden, strict=True))
    nn.Linear = lambda inputs, outputs: linear(widths.get(inputs, inputs), widths.get(outputs, outputs))  # type: ignore
sys.argv = [
    str(file),
    f"--seed={work.seed}",
    f"--total-timesteps={work.env_steps}",
    f"--learning-rate={work.learning_rate}",
    f"--buffer-size={work.buffer_size}",
    f"--gamma={work.gamma}",
    f"--target-network-frequency={work.target_every}",
    f"--batch-size={work.batch_size}",
    f"--end-e={work.final_epsilon}",
    f"--exploration-fraction={work.exploration_fraction}",
    f"--learning-starts={work.learning_starts}",
    f"--train-frequency={work.train_every}",
]
network = runpy.run_path(str(file), run_name="__main__")["q_network"]


@torch.no_grad()
def act(observation):
    return int(network(torch.as_tensor(observation)).argmax())


meter.finish(act, "tensorboard")
