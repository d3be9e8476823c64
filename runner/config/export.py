"""The greedy policy of a run as one file that needs torch alone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.config.arguments import parse_arguments
from runner.config.assemble import Experiment, assemble
from runner.config.report import Rejected
from runner.config.resume import resume
from runner.policy import Policy
from runner.runs import RunFolder
from runner.spec import ConfigError, HooklineError

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


def export_or_say_why(folder: Path, path: Path, module_id: str | None = None) -> int:
    """Write the file and say so, or what is wrong with the run; returns the exit code."""
    try:
        export_run(folder, path, module_id)
    except (Rejected, HooklineError) as error:
        print(error, file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    print(f"{path}: the policy of {folder}")
    return 0


def export_run(folder: Path, path: Path, module_id: str | None = None) -> None:
    """Write the policy of the newest checkpoint of a run, or of ``<run>/ckpt/step-<n>``; of one module of several."""
    run = folder.parent.parent if folder.parent.name == "ckpt" else folder
    config = _config_of(run)
    experiment = assemble({**config, "device": "cpu", "logger": {}}, RunFolder.open(run))
    trainer = experiment.trainer
    assert trainer.checkpoint is not None
    try:
        trainer.checkpoint.load(accept=trainer.load_state_dict, take=folder.name if folder != run else None)
        export_policy(_policy_of(experiment, module_id), path)
    finally:
        experiment.environment.close()


def _policy_of(experiment: Experiment, module_id: str | None) -> Policy:
    """As the checkpoint left it, which may have been without modules that the configuration names."""
    evaluation: Any = experiment.evaluation
    parts = getattr(evaluation, "parts", {})
    if parts and module_id not in parts:
        raise ConfigError(f"this run has the modules {', '.join(parts)}: say which one, --module {next(iter(parts))}")
    if module_id is not None and not parts:
        raise ConfigError(f"this run has one module and no other called {module_id}: leave out --module")
    policy = (parts[module_id] if parts else evaluation).policy
    assert isinstance(policy, Policy)
    return policy


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
