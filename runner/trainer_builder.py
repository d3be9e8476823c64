"""A trainer and its hooks from plain values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hooks.batch_sub_sampler import BatchSubSampler
from hooks.clear_cuda_cache import ClearCudaCache
from hooks.count_frames_log import CountFramesLog
from hooks.log_exploration import LogExploration
from hooks.log_reward import LogReward
from hooks.replay_buffer import ReplayBufferTrainer
from hooks.reward_normalizer import RewardNormalizer
from hooks.select_keys import SelectKeys
from hooks.target_net_updater import TargetNetUpdaterHook
from hooks.update_weights import UpdateWeights
from runner.batch_source import BatchSource
from runner.hook import TrainerHookBase
from runner.learner import optimizers
from runner.learner.gradients import Clip
from runner.learner.learner import Learner
from runner.learner.optimization import Optimization
from runner.metrics import Metrics
from runner.schedules import Cosine, on_the_axis_of
from runner.seeding import Streams
from runner.spec import NEXT_EPISODE_RETURN, Collector, DataSource, Logger, Progress, as_key
from runner.trainer import Trainer
from runner.types import PositiveInt

OPTIMIZERS = ("adam", "sgd", "adamax")
SCHEDULERS = ("cosine", "")
OPTIM_STEPS, BATCH_SIZE = 500, 256
"""Of updates on the collected batch itself."""


@dataclass(frozen=True)
class TrainerOptions:
    """What :func:`make_trainer` makes of a ready ``loss_module``, by the names and defaults of the trainer page.

    Args:
        optim_steps_per_batch, batch_size, sub_traj_len: updates for each collected batch (500), and what each sees of
            it (256 steps, or all if it has fewer); a replay buffer has its own.
        optimizer: ``adam``, ``sgd`` or ``adamax``, with ``lr`` and ``weight_decay``.
        lr_scheduler: ``cosine``, over the whole run, or the empty string for none.
        selected_keys: entries of the collected batches that are kept; ``None`` for all.
        log_interval: frames between two rows of metrics.
        clip_norm: largest gradient, ``None`` for any; of all together with ``clip_grad_norm``, else of each element.
        seed: of which parts of a batch an update sees; that which torch was given (``torch.manual_seed``) if not given.
        normalize_rewards_online: by a ``RewardNormalizer`` with this ``scale`` and ``decay``.
    """

    optim_steps_per_batch: int | None = None
    optimizer: str = "adam"
    lr: float = 3e-4
    weight_decay: float = 0.0
    lr_scheduler: str = "cosine"
    selected_keys: Sequence[Any] | None = None
    batch_size: int | None = None
    sub_traj_len: int = -1
    log_interval: int = 10_000
    clip_norm: float | None = 1000.0
    clip_grad_norm: bool = False
    normalize_rewards_online: bool = False
    normalize_rewards_online_scale: float = 1.0
    normalize_rewards_online_decay: float = 0.9999
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}: there are {', '.join(OPTIMIZERS)}")
        if self.lr_scheduler not in SCHEDULERS:
            raise ValueError(f"lr_scheduler={self.lr_scheduler!r}: there are cosine, and '' for none")
        for name in ("optim_steps_per_batch", "batch_size", "lr", "log_interval"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be > 0")

    def make_streams(self) -> Streams:
        return Streams(torch.initial_seed() if self.seed is None else self.seed)

    def make_optimization(self, loss_module: nn.Module, length: int, progress: Progress) -> Optimization:
        """``length``: of the whole run, on the axis of its progress."""
        make: Any = getattr(optimizers, self.optimizer)
        clip_by: Any = "global_norm" if self.clip_grad_norm else "value"
        trained = [parameter for parameter in loss_module.parameters() if parameter.requires_grad]
        return Optimization(
            make(trained, lr=self.lr, weight_decay=self.weight_decay),
            schedule=on_the_axis_of(progress, Cosine(length, 0.0, None) if self.lr_scheduler else None),
            clip=None if self.clip_norm is None else Clip(self.clip_norm, clip_by),
        )


def make_trainer(
    collector: Collector,
    learner: Learner | None = None,
    source: DataSource | None = None,
    total_frames: PositiveInt | None = None,
    frame_skip: PositiveInt | None = None,
    hooks: Mapping[str, TrainerHookBase] | None = None,
    loggers: Sequence[Logger] = (),
    save_trainer_file: str | Path | None = None,
    *,
    loss_module: nn.Module | None = None,
    recorder: TrainerHookBase | None = None,
    target_net_updater: Any = None,
    policy_exploration: Any = None,
    replay_buffer: DataSource | None = None,
    logger: Logger | None = None,
    **more: Any,
) -> Trainer:
    """A trainer with its hooks registered, so that all of their state is in its checkpoints.

    With a ``learner``, nothing but ``hooks`` is registered, in their order. With a ``loss_module``, the hooks that
    the trainer page lists come first: see :class:`TrainerOptions`, whose fields ``more`` may hold then.

    Args:
        recorder: the hook that evaluates.
        target_net_updater: a target that knows its network, updated after each update of it.
        policy_exploration: the policy (or exploration) whose ``metrics`` are logged.
        replay_buffer: another name for ``source``.
        logger: one more of ``loggers``.
        more: further arguments of :class:`Trainer`, and :class:`TrainerOptions`.
    """
    _check_end(collector, source or replay_buffer, total_frames, more.get("stop_after") or {})
    if (learner is None) == (loss_module is None):
        raise ValueError("make_trainer takes either a learner or a loss_module")
    if source is not None and replay_buffer is not None:
        raise ValueError("source and replay_buffer are two names of one thing: give one")
    if loss_module is not None and not isinstance(loss_module, nn.Module):
        raise ValueError(
            f"loss_module: a {type(loss_module).__name__} is no torch module, whose forward takes a sub-batch "
            "and gives {'loss_...': ...}; a loss by terms goes into make_learner, and that is given as learner"
        )
    source, given = source or replay_buffer, _options_in(more, learner)
    more["metrics"] = _metrics(more.pop("metrics", None), [*loggers, *([logger] if logger else [])])
    more |= {"total_frames": total_frames, "frame_skip": frame_skip, "save_trainer_file": save_trainer_file}
    named: dict[str, TrainerHookBase] = {}
    if loss_module is None:
        trainer = Trainer(collector=collector, learner=learner, source=source, **more)
    else:
        options = TrainerOptions(**given)
        trainer = _make_around(loss_module, collector, source, options, more)
        named |= _hooks_of_the_page(options, trainer)
    named |= {"recorder": recorder} if recorder else {}
    named |= {"target_net_updater": _as_hook(target_net_updater)} if target_net_updater is not None else {}
    named |= {"policy_exploration": LogExploration(policy_exploration)} if policy_exploration is not None else {}
    _register(trainer, named, hooks or {})
    return trainer


def _check_end(
    collector: Collector, source: DataSource | None, total_frames: int | None, stop_after: Mapping[str, float]
) -> None:
    """Raise ``ValueError`` for a run that has no end."""
    if getattr(collector, "frames_per_batch", None) != 0:
        if total_frames is None:
            raise ValueError("make_trainer needs total_frames: after how many a run is done")
    elif total_frames is not None or "updates" not in stop_after:
        raise ValueError(
            "make_trainer: where nothing is played, stop_after={'updates': n} ends a run, not total_frames"
        )
    elif getattr(source, "warmup", 0):
        raise ValueError("make_trainer: where nothing is played, a warm-up never ends; the source needs warmup=0")


def _register(trainer: Trainer, own: Mapping[str, TrainerHookBase], given: Mapping[str, TrainerHookBase]) -> None:
    twice = own.keys() & given.keys()
    if twice:
        raise ValueError(f"hooks: {', '.join(sorted(twice))} is registered already; give yours another name")
    for name, hook in {**own, **given}.items():
        hook.register(trainer, name)


def _metrics(metrics: Metrics | None, loggers: Sequence[Logger]) -> Metrics:
    if metrics is not None and loggers:
        raise ValueError("metrics has loggers of its own, Metrics([...]): give those, or loggers, and not both")
    return metrics or Metrics(loggers)


def _make_around(
    loss_module: nn.Module, collector: Any, source: DataSource | None, options: TrainerOptions, more: dict[str, Any]
) -> Trainer:
    """The trainer that applies the updates of ``loss_module`` by itself."""
    source = source or BatchSource(options.optim_steps_per_batch or OPTIM_STEPS)
    _check_owners(options, source, getattr(collector, "frames_per_batch", None))
    progress = more.get("progress") or getattr(collector, "progress", None)
    skip = more["frame_skip"] or (progress.frame_skip if progress else 1)
    frames = more["total_frames"]
    length = more["stop_after"]["updates"] if frames is None else frames // skip
    optimization = options.make_optimization(loss_module, length, progress or Progress())
    more.setdefault("log_every", {"updates" if frames is None else "frames": options.log_interval})
    return Trainer(collector=collector, source=source, loss_module=loss_module, optimizer=optimization, **more)


def _options_in(more: dict[str, Any], learner: Learner | None) -> dict[str, Any]:
    """Take what belongs to :class:`TrainerOptions` out of ``more``."""
    names = [field.name for field in fields(TrainerOptions) if field.name in more]
    if learner is not None and names:
        raise ValueError(f"{', '.join(names)}: go with a loss_module; a learner and its source have their own")
    return {name: more.pop(name) for name in names}


def _check_owners(options: TrainerOptions, source: DataSource, collected: int | None) -> None:
    """How many updates there are, and how large, is for the source to say, if there is one."""
    if isinstance(source, BatchSource):
        if collected and options.batch_size and options.batch_size > collected:
            raise ValueError(f"batch_size={options.batch_size}: the collector's batches have {collected} steps")
        return
    for name, own in (("optim_steps_per_batch", "optim_steps"), ("batch_size", "batch_size")):
        if getattr(options, name) is not None:
            raise ValueError(f"{name}: the replay buffer has its own, make_replay_buffer({own}=...)")
    if options.sub_traj_len > 0:
        raise ValueError("sub_traj_len: goes without a replay buffer, which draws single transitions")


def _hooks_of_the_page(options: TrainerOptions, trainer: Trainer) -> dict[str, TrainerHookBase]:
    """In the order in which they have to be registered: what is stored is selected, and normalized once sampled."""
    found: dict[str, TrainerHookBase] = {}
    if torch.cuda.is_available():
        found["clear_cuda_cache"] = ClearCudaCache({"batches": 1000})
    if options.selected_keys is not None:
        found["select_keys"] = SelectKeys(options.selected_keys)
    if isinstance(trainer.source, BatchSource):
        collected = getattr(trainer.collector, "frames_per_batch", BATCH_SIZE)
        size = options.batch_size or min(BATCH_SIZE, collected)
        found["batch_sub_sampler"] = BatchSubSampler(size, options.sub_traj_len, streams=options.make_streams())
    else:
        found["replay_buffer"] = ReplayBufferTrainer(trainer.source)
    if options.normalize_rewards_online:
        scale, decay = options.normalize_rewards_online_scale, options.normalize_rewards_online_decay
        found["reward_normalizer"] = RewardNormalizer(decay, scale, gamma=_discount(trainer.source))
    found["update_weights"] = UpdateWeights(trainer.collector)  # type: ignore[arg-type]
    if options.selected_keys is None or NEXT_EPISODE_RETURN in map(as_key, options.selected_keys):
        found["log_reward"] = LogReward()
    found["count_frames_log"] = CountFramesLog()
    return found


def _discount(source: Any) -> float:
    """Between the rewards that a source sums; 1 where it sums none."""
    found = set(_discounts(source))
    if len(found) > 1:
        shown = ", ".join(f"{one:g}" for one in sorted(found))
        raise ValueError(f"normalize_rewards_online: the sources sum rewards with different gamma: {shown}")
    return found.pop() if found else 1.0


def _discounts(source: Any) -> Iterator[float]:
    for part in getattr(source, "sources", {}).values():
        yield from _discounts(part)
    if getattr(source, "n", 1) > 1:
        yield source.gamma


def _as_hook(target: Any) -> TrainerHookBase:
    return target if isinstance(target, TrainerHookBase) else TargetNetUpdaterHook(target)
