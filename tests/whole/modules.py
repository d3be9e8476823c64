"""Runs of several modules for tests: small ones of two tasks."""

import os
import signal
from typing import Any

import torch
from tensordict import TensorDictBase

from runner.builders import make_learner
from runner.config import experiment as running
from runner.config.arguments import parse_arguments
from runner.config.assemble import Experiment, assemble
from runner.config.check import check
from runner.hook import Hook
from runner.learner.learner import Learner
from runner.learner.module import Module, ModuleConfig
from tests.whole.runs import ANY, ON_POLICY, SHORT

NAMED = "learner.modules={left: {}, right: {env: {kwargs: {task: right}}}}"
SMALL = (
    "env=two_tasks", "total_frames=1200", "source.warmup=100", "source.capacity=400", "evaluation.every.env_steps=400",
    "checkpoint.every.env_steps=200",
)  # fmt: skip
KINDS = ("off_policy", "on_policy")


class CountingLearner(Learner):
    """A learner of a user's own."""

    def __init__(self, modules: Any, step: int = 1) -> None:
        super().__init__(modules)
        self.step_size, self.counted = step, 0

    def compute_losses(self, batch: TensorDictBase) -> TensorDictBase:
        self.counted += self.step_size
        return super().compute_losses(batch)


class Alternating:
    """Chooses the modules in turn, two updates each, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...], int]] = []

    def __call__(self, module_id: str, batch: TensorDictBase) -> bool:
        number = sum(one == module_id for one, _, _ in self.asked)
        self.asked.append((module_id, tuple(map(str, batch.keys())), batch.get(module_id).numel()))
        return (number // 2) % 2 == ("left", "right").index(module_id)


class StopsAtOnce(Hook):
    """One update with each batch is enough."""

    point = "post_loss"

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, sub_batch: TensorDictBase) -> None:
        self.trainer.optim_stopped = True


class OwnOptimizers(Learner):
    """A learner of a user's own, which says what moves its modules, and that some are not to be moved."""

    def __init__(self, modules: Any, still: str = "") -> None:
        super().__init__(modules)
        self.still, self.asked, self.given = still, list[str](), dict[str, Any]()

    def rl_module_is_compatible(self, module: Module) -> bool:
        (module_id,) = [name for name, one in self.modules.items() if one is module]
        self.asked.append(module_id)
        return module_id != self.still

    def configure_optimizers_for_module(self, module_id: str, config: ModuleConfig) -> None:
        self.given[module_id] = config
        moved = self.get_parameters(self.modules[module_id])
        rate = torch.optim.SGD(moved, lr=0.01)
        self.register_optimizer(module_id=module_id, optimizer_name="own", optimizer=rate, params=moved)


def make_own(networks: Any, loss: Any, optimizer: Any) -> Learner:
    """What a run of one agent may have as its learner."""
    return make_learner(networks, loss, optimizer)


def compose_modules(*overrides: str, kind: str = "off_policy", modules: str = NAMED) -> dict[str, Any]:
    """The configuration of a small run; ``kind`` says whether it replays."""
    if kind == "off_policy":
        return check(parse_arguments([*SHORT, *SMALL, modules, *overrides])).config
    of_all = [one for one in SMALL if not one.startswith("source.")]
    return check(parse_arguments([*ANY, *ON_POLICY, *of_all, "env.num_envs=2", modules, *overrides])).config


def built(config: dict[str, Any]) -> Experiment:
    torch.set_num_threads(config["threads"])
    return assemble(config)


def trained(config: dict[str, Any]) -> Experiment:
    """A run that has come to its end."""
    experiment = built(config)
    experiment.trainer.train()
    close(experiment)
    return experiment


def close(experiment: Experiment) -> None:
    for member in experiment.modules.values():
        member.environment.guard.watch.stop()


def learnt(experiment: Experiment, module_id: str) -> dict[str, Any]:
    """All that a module has come to, as a checkpoint has it, but for how the run counts."""
    member = experiment.modules[module_id]
    return {
        "networks": {name: network.state_dict() for name, network in member.module.networks.items()},
        "optimizations": {one.name: one.state_dict() for one in member.module.optimizations},
        "collector": member.collector.state_dict(),
        "source": member.source.state_dict(),
        "progress": {**member.progress.state_dict(), "seconds": 0},
        "hooks": member.state_dict(),
    }


def die_at(env_steps: int) -> None:
    """Let this process be killed at the first safe point from there on."""
    at_safe_point = running._at_safe_point

    def dying(trainer: Any, *more: Any) -> str | None:
        if trainer.progress.env_steps >= env_steps:
            trainer.checkpoint.finish()  # it is saved as is due
            os.kill(os.getpid(), signal.SIGKILL)
        return at_safe_point(trainer, *more)

    running._at_safe_point = dying
