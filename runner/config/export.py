"""The greedy policy of a run as one file that needs torch alone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.report import Rejected
from runner.config.resume import resume
from runner.policy import Policy
from runner.runs import RunFolder
from runner.spec import HooklineError

LONGER = 10**15
"""Than any run: a run that is done may only be read by who lets it go on."""


class Greedy(nn.Module):
    """``observation [N, ...] -> action [N, ...]``; where it remembers, ``memory [N, size]`` goes in and comes out."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.network: Any = policy.network
        self.distribution, self.remembers = policy.distribution, policy.memory_size > 0

    def forward(self, observation: Tensor, memory: Tensor | None = None) -> Any:
        """Within the bounds, as environments take actions."""
        if not self.remembers:
            return self._action(self.network(observation))
        outputs, after = self.network.step(observation, memory)
        return self._action(outputs), after

    def _action(self, outputs: Tensor) -> Tensor:
        return self.distribution.played(self.distribution.mode(outputs))


def export_policy(policy: Policy, path: Path) -> None:
    """Write ``path``, a program of torch (``torch.export.load(path).module()``) for any number of observations."""
    copy, rows = policy.copy("cpu"), torch.export.Dim("rows")
    copy.network.requires_grad_(False)
    shown = torch.from_numpy(np.zeros((2, *copy.spec.observation_shape), copy.spec.observation_dtype))
    inputs: tuple[Tensor, ...] = (shown,)
    if copy.memory_size:
        inputs = (shown, torch.zeros(2, copy.memory_size))
    program = torch.export.export(Greedy(copy), inputs, dynamic_shapes=tuple({0: rows} for _ in inputs))
    torch.export.save(program, path)


def export_or_say_why(folder: Path, path: Path) -> int:
    """Write the file and say so, or what is wrong with the run; returns the exit code."""
    try:
        export_run(folder, path)
    except (Rejected, HooklineError) as error:
        print(error, file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    print(f"{path}: the policy of {folder}")
    return 0


def export_run(folder: Path, path: Path) -> None:
    """Write the policy of the newest checkpoint of a run, or of ``<run>/ckpt/step-<n>``."""
    run = folder.parent.parent if folder.parent.name == "ckpt" else folder
    config = _config_of(run)
    experiment = assemble({**config, "device": "cpu", "logger": {}}, RunFolder.open(run))
    trainer, policy = experiment.trainer, experiment.evaluation.policy
    assert trainer.checkpoint is not None
    assert isinstance(policy, Policy)
    try:
        trainer.checkpoint.load(accept=trainer.load_state_dict, take=folder.name if folder != run else None)
        export_policy(policy, path)
    finally:
        experiment.environment.close()


def _config_of(run: Path) -> dict[str, Any]:
    """That of a run as it would be gone on with, be it done or not."""
    further: list[list[str]] = [[], [f"total_frames={LONGER}"], [f"stop_after.updates={LONGER}"]]
    for words in further[:-1]:
        try:
            return resume(parse_arguments([f"resume={run}", *words]), run).config
        except Rejected as rejected:
            if "this run is done" not in str(rejected):
                raise
    return resume(parse_arguments([f"resume={run}", *further[-1]]), run).config
