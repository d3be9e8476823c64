"""Learners from plain values, and modules that begin with what another run has learnt."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from runner.checkpoint.store import CheckpointStore
from runner.learner.approximation import Approximation
from runner.learner.features import FeatureNetwork, is_shared
from runner.learner.gradients import ClipBy, NonFinite
from runner.learner.learner import Learner
from runner.learner.module import DEFAULT_MODULE, Loss, ModuleConfig, ModuleSpec
from runner.learner.optimization import NON_FINITE_LIMIT
from runner.learner.pipeline import Select
from runner.learner.precision import Precision
from runner.learner.state import RL_MODULE
from runner.learner.targets import TargetNetwork
from runner.schedules import Schedule
from runner.spec import CheckpointError, ConfigError, Progress
from runner.types import Compile, OptimizationOptions, PositiveFloat, PositiveInt, PrecisionName, Wrapper

log = logging.getLogger(__name__)


def make_learner(
    networks: Mapping[str, nn.Module],
    loss: Loss,
    optimizer: Callable[[Sequence[nn.Parameter]], optim.Optimizer],
    scheduler: Schedule | None = None,
    target_updater: TargetNetwork | None = None,
    progress: Progress | None = None,
    clip: PositiveFloat | None = None,
    clip_by: ClipBy = "global_norm",
    loss_weights: dict[str, float] | None = None,
    update_every: PositiveInt = 1,
    non_finite: NonFinite = "raise",
    non_finite_limit: PositiveInt | None = NON_FINITE_LIMIT,
    precision: PrecisionName = "fp32",
    compile: Compile = "trace",
    optimizations: dict[str, OptimizationOptions] | None = None,
    generator: torch.Generator | None = None,
    kind: Wrapper | None = None,
    restore: dict[str, str] | None = None,
    run: Any = None,
) -> Learner:
    """A learner with one module: all of ``networks`` moved by one optimizer, or by one for each stage of the loss.

    Args:
        networks: by name; those that ``loss.targets`` names are each followed by a copy of ``target_updater``.
        optimizer: makes the optimizer from the parameters.
        scheduler: learning rate over env steps.
        clip, clip_by: largest gradient, and of what.
        loss_weights: by loss term.
        update_every: apply in every n-th update.
        non_finite: what to do about gradients that are no numbers.
        non_finite_limit: end the run after so many skipped or zeroed updates in a row.
        precision: in which updates call the networks.
        compile: how updates are computed.
        optimizations: what one of several does otherwise, by the name of the loss's stage.
        generator: for the noise of losses that need some.
        kind: a subclass of :class:`Learner` with methods of its own, called with the modules.
        restore: by module id, the folder of a run whose weights it begins with; see :func:`restore_module`.
        run: the run's folder; one that has saved goes on with its own weights.
    """
    spec = make_module_spec(
        networks, loss, optimizer, scheduler, target_updater, clip, clip_by, loss_weights, update_every, non_finite,
        non_finite_limit, optimizations, generator,
    )  # fmt: skip
    learner = build_learner({DEFAULT_MODULE: spec}, kind, progress, compile, precision)
    restore_modules(learner, restore, run)
    return learner


def make_module_spec(
    networks: Mapping[str, nn.Module],
    loss: Loss,
    optimizer: Callable[[Sequence[nn.Parameter]], optim.Optimizer],
    scheduler: Schedule | None = None,
    target_updater: TargetNetwork | None = None,
    clip: PositiveFloat | None = None,
    clip_by: ClipBy = "global_norm",
    loss_weights: dict[str, float] | None = None,
    update_every: PositiveInt = 1,
    non_finite: NonFinite = "raise",
    non_finite_limit: PositiveInt | None = NON_FINITE_LIMIT,
    optimizations: dict[str, OptimizationOptions] | None = None,
    generator: torch.Generator | None = None,
) -> ModuleSpec:
    """What a learner makes a module of; the parameters are those of :func:`make_learner`."""
    config = ModuleConfig(
        optimizer, scheduler, clip, clip_by, loss_weights or {}, update_every, non_finite, non_finite_limit,
        None, optimizations or {},
    )  # fmt: skip
    return ModuleSpec(partial(_wrapped, networks, loss, target_updater), loss, config, generator)


def build_learner(
    modules: Mapping[str, ModuleSpec],
    kind: Wrapper | None = None,
    progress: Progress | None = None,
    compile: Compile = "trace",
    precision: PrecisionName = "fp32",
    modules_to_train: Select = None,
) -> Learner:
    """A learner of these modules, of the ``kind`` that is wanted; a ``ConfigError`` for what is none."""
    try:
        learner = (kind or Learner)(modules)
    except TypeError as error:
        raise ConfigError(f"learner.kind cannot be made: {error}") from error
    if not isinstance(learner, Learner):
        raise ConfigError(f"learner.kind: a {type(learner).__name__} is no runner.learner.learner.Learner")
    if learner.is_built:
        raise ConfigError(
            f"learner.kind: a {type(learner).__name__} builds itself, before it knows how: leave build out"
        )
    learner.progress, learner.compile = progress or learner.progress, compile
    learner.precision, learner.modules_to_train = Precision(precision), modules_to_train
    return learner.build()


def _wrapped(
    networks: Mapping[str, nn.Module], loss: Loss, target_updater: TargetNetwork | None
) -> dict[str, Approximation]:
    """The networks, with a target of its own for each that has one."""
    followed = getattr(loss, "targets", ()) if target_updater else ()
    return {
        name: (FeatureNetwork if is_shared(model, networks) else Approximation)(
            model, name=name, target=deepcopy(target_updater) if name in followed else None
        )
        for name, model in networks.items()
    }


def restore_modules(learner: Learner, restore: Mapping[str, str] | None, run: Any = None) -> None:
    """Let modules begin with what others have learnt, unless the run goes on from a checkpoint of its own.

    Args:
        restore: by module id, the folder of a run; see :func:`restore_module`.
        run: the run's folder. One that was killed before its first checkpoint begins anew.
    """
    if not restore or _has_saved(run):
        return
    for module_id, path in restore.items():
        restore_module(learner, module_id, path)


def _has_saved(run: Any) -> bool:
    if run is None:
        return False
    return getattr(run, "saved_env_steps", None) is not None or bool(CheckpointStore(run=run).folders())


def restore_module(learner: Learner, module_id: str, path: str | Path) -> None:
    """Give a module the weights, and targets, that one of another run has saved; nothing else changes.

    Args:
        path: a run's folder, that of its checkpoints, or one of those; of several modules the one of the same id.

    Raises:
        ConfigError: where there is no such module, or no good checkpoint of one with the same networks.
    """
    asked = f"learner.restore.{module_id}={path}"
    if module_id not in learner.module:
        raise ConfigError(f"{asked}: this run has no such module; it has {', '.join(learner.module)}")
    folder, take = Path(path), None
    if folder.name == "ckpt":
        folder = folder.parent
    elif folder.parent.name == "ckpt":
        folder, take = folder.parent.parent, folder.name
    if not folder.is_dir():
        raise ConfigError(f"{asked}: there is no such folder")
    try:
        state, manifest = CheckpointStore(run=folder).load(take=take)
        saved = state["learner"][RL_MODULE]
        only = next(iter(saved)) if len(saved) == 1 else module_id
        if only not in saved:
            raise ConfigError(f"{asked}: that run has no such module; it has {', '.join(saved)}")
        learner.set_state({RL_MODULE: {module_id: saved[only]}})
    except (CheckpointError, KeyError, RuntimeError) as error:  # torch says with the last where shapes differ
        words = str(error).replace("\n", " ")
        raise ConfigError(f"{asked}: its weights do not fit: {words}") from error
    counters = manifest["counters"]
    at = f"saved after {counters['env_steps']:,} env steps and {counters['updates']:,} updates"
    log.info("module %s begins with the weights of module %s of %s, %s", module_id, only, folder, at)
