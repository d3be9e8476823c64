"""Plain values in, objects out: every part of a run can be made here, with or without a configuration."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from runner.collector_builders import (
    make_collector_offpolicy,
    make_collector_onpolicy,
    sync_async_collector,
    sync_sync_collector,
)
from runner.collectors.asynchronous import AsyncCollector
from runner.collectors.in_process import InProcessCollector
from runner.collectors.synchronous import SyncCollector
from runner.data.memmap import MemMapStorage
from runner.data.mixture import Mixture
from runner.data.replay import KEYS, MASKS, Replay
from runner.data.samplers import SamplerName, check_options, make_sampler
from runner.data.storage import TensorStorage
from runner.env_builders import (
    correct_for_frame_skip,
    get_stats_random_rollout,
    parallel_env_constructor,
    transformed_env,
    transformed_env_constructor,
)
from runner.envs.vector import Environment, make_environment
from runner.evaluation import Evaluation
from runner.exploration import EpsilonGreedy
from runner.learner.targets import FixedTarget, PolyakTarget, TargetNetwork, TrivialTarget
from runner.learner_builders import make_learner, restore_module
from runner.loggers.base import generate_exp_name
from runner.loggers.choose import get_logger
from runner.losses.dqn import DQNLoss
from runner.networks.actor_critic import make_actor_critic
from runner.networks.cnn import make_q_cnn
from runner.networks.mlp import make_q_network
from runner.offline_builders import make_offline_source
from runner.policy import Policy
from runner.record.video import VideoRecorder
from runner.schedules import linear
from runner.seeding import Streams, env_seed
from runner.spec import NEXT_DONE, TRAJ_IDS, EnvSpec, Exploration, Progress
from runner.trainer_builder import make_trainer
from runner.types import (
    Discount,
    Every,
    Fraction,
    LossFunction,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
)


def make_policy(
    networks: Mapping[str, nn.Module], spec: EnvSpec, exploration: Exploration | None = None, device: str = "cpu"
) -> Policy:
    """A policy that acts by the network called ``policy``, or else by the first."""
    return Policy(acting_network(networks), spec, exploration, device=device)


def acting_network(networks: Mapping[str, nn.Module]) -> nn.Module:
    """The one that chooses actions."""
    return networks.get("policy") or next(iter(networks.values()))


def make_replay_buffer(
    generator: torch.Generator | None = None,
    device: str = "cpu",
    capacity: PositiveInt = 50_000,
    batch_size: PositiveInt = 128,
    optim_steps: NonNegativeInt = 1,
    warmup: NonNegativeInt = 0,
    n_step: PositiveInt = 1,
    gamma: Discount = 0.99,
    storage: Literal["tensor", "memmap"] = "tensor",
    run: Any = None,
    sampler: SamplerName = "uniform",
    alpha: Fraction | None = None,
    beta: Fraction | None = None,
    beta_end: Fraction | None = None,
    beta_env_steps: PositiveFloat | None = None,
    slice_length: PositiveInt | None = None,
    is_fixed: bool = False,
    progress: Progress | None = None,
    total_env_steps: int = 0,
) -> Replay:
    """A replay buffer; sub-batches lie ready in memory of their own, so there is nothing to prefetch.

    Args:
        n_step, gamma: rewards that are summed, discounted by ``gamma``, before a transition bootstraps.
        storage: in memory, or in files of the folder ``run`` (the scratch directory), for buffers larger than memory.
        run: a run's folder, or anything with such a ``path``.
        sampler: what is drawn; ``prioritized`` alone has ``alpha`` (0.7) and ``beta`` (0.5), ``slices`` alone has
            ``slice_length``.
        beta_end, beta_env_steps: where ``beta`` goes (1) in so many env steps (those of the whole run).
        is_fixed: in a mixture, collected batches do not go in.
        total_env_steps: of the whole run; 0 leaves ``beta`` as it is.
    """
    if storage == "memmap" and device != "cpu":
        raise ValueError(f"source.storage=memmap keeps rows for device=cpu; {device=!s} needs source.storage=tensor")
    options = {"alpha": alpha, "beta": beta, "beta_end": beta_end, "beta_env_steps": beta_env_steps}
    options["slice_length"] = slice_length
    check_options(sampler, options, batch_size)
    keys = (*KEYS, NEXT_DONE)
    rows = (
        MemMapStorage(capacity, keys, run, optional=[TRAJ_IDS, *MASKS])
        if storage == "memmap"
        else TensorStorage(capacity, keys, device, optional=[TRAJ_IDS, *MASKS])
    )
    options["alpha"] = 0.7 if alpha is None else alpha
    start, end, duration = 0.5 if beta is None else beta, 1.0 if beta_end is None else beta_end, beta_env_steps
    beta_now = partial(_linear_in, progress or Progress(), start, end, duration or total_env_steps)
    replay = Replay(
        rows,
        make_sampler(sampler, rows, generator or torch.Generator(), options, beta_now),
        batch_size=batch_size,
        optim_steps=optim_steps,
        warmup=warmup,
        n_step=n_step,
        gamma=gamma,
    )
    replay.is_fixed = is_fixed
    return replay


def _linear_in(progress: Progress, start: float, end: float, env_steps: float) -> float:
    """What a schedule over ``env_steps`` is at now; 0 of them leave it at its start."""
    return linear(start, end, env_steps, progress.env_steps) if env_steps else start


def make_mixture(
    sources: dict[str, Any],
    fractions: dict[str, OpenFraction],
    batch_size: PositiveInt = 128,
    optim_steps: NonNegativeInt = 1,
    warmup: NonNegativeInt = 0,
    capacity: PositiveInt | None = None,
    n_step: PositiveInt | None = None,
) -> Mixture:
    """Sub-batches put together from several sources, each giving its fraction.

    Args:
        sources, fractions: by the same names; the batch size, optim steps and warm-up of the sources are not used.
        capacity, n_step: for ``sources`` to refer to, as ``${source.capacity}``.
    """
    in_files = [name for name, one in sources.items() if isinstance(getattr(one, "storage", None), MemMapStorage)]
    in_sequences = [name for name, one in sources.items() if getattr(getattr(one, "sampler", None), "length", 0)]
    if in_sequences:
        raise ValueError(f"source.sources.{in_sequences[0]} draws slices, which cannot be mixed with other samples")
    if len(in_files) > 1:
        raise ValueError(f"source.sources: {' and '.join(in_files)} would keep their rows in the same files (memmap)")
    return Mixture(sources, fractions, batch_size=batch_size, optim_steps=optim_steps, warmup=warmup)


def make_dqn_loss(
    gamma: Discount = 0.99,
    double: bool = True,
    loss_function: LossFunction = "smooth_l1",
    delay_value: bool = True,
    loss: Literal["single", "double"] | None = None,
) -> DQNLoss:
    """The loss of deep Q-learning, over a network ``q``.

    Args:
        double: the network, not its target, says which next action is best.
        delay_value: bootstrap from a target network, not from the network itself.
        loss: the trainer page's name for ``delay_value``: ``double`` with a target network, ``single`` without.
    """
    if loss is not None and loss not in ("single", "double"):
        raise ValueError(f"loss={loss!r}: there are single and double")
    if loss_function not in get_args(LossFunction):
        raise ValueError(f"loss_function={loss_function!r}: there are {', '.join(get_args(LossFunction))}")
    if loss == "double" and not delay_value:
        raise ValueError(
            "loss='double' bootstraps from a target network, and delay_value=False from the network itself"
        )
    made = DQNLoss(gamma, double, loss_function)
    if loss == "single" or not delay_value:
        made.targets = ()  # type: ignore[assignment]
    return made


def make_target_updater(
    update_frequency: PositiveInt | None = None,
    rate: Fraction | None = None,
    loss: Any = None,
    hard_update: bool | None = None,
    value_network_update_interval: PositiveInt | None = None,
) -> TargetNetwork:
    """A target renewed every ``update_frequency`` updates, or averaged at ``rate``, or neither: the network itself.

    Or by the names of the trainer page: renewed every ``value_network_update_interval`` updates with ``hard_update``,
    else averaged at a rate of one divided by it; 1000 if only ``hard_update`` is given.

    Args:
        loss: one that has no targets (or the word ``single``) can have no ``hard_update``.
    """
    if hard_update is not None or value_network_update_interval is not None:
        if update_frequency is not None or rate is not None:
            raise ValueError("value_network_update_interval with hard_update, or update_frequency, or rate: not both")
        interval = value_network_update_interval or 1000
        update_frequency, rate = (interval, None) if hard_update else (None, 1 / interval)
    is_single = loss == "single" or (
        loss is not None and not isinstance(loss, str) and not getattr(loss, "targets", ())
    )
    if is_single and update_frequency is not None:
        raise ValueError("a single loss bootstraps from the network itself: there is no target for a hard_update")
    if update_frequency is not None and rate is not None:
        raise ValueError("a target has an update_frequency (copied) or a rate (averaged), not both")
    if update_frequency is not None:
        return FixedTarget(update_frequency)
    return TrivialTarget() if rate is None or is_single else PolyakTarget(rate)


def make_evaluation(
    environment: Environment,
    policy: Policy,
    streams: Streams,
    every: Every,
    episodes: PositiveInt = 10,
    final_episodes: PositiveInt = 20,
) -> Evaluation:
    """Greedy evaluation on environments like ``environment``'s, with seeds that training never uses."""

    def seed_of(stream: str, episode: int) -> int:
        return env_seed(streams.seed, stream, episode)

    return Evaluation(environment.make_for_evaluation, policy, seed_of, every, episodes, final_episodes)


__all__ = [
    "AsyncCollector",
    "EpsilonGreedy",
    "InProcessCollector",
    "Streams",
    "SyncCollector",
    "VideoRecorder",
    "correct_for_frame_skip",
    "generate_exp_name",
    "get_logger",
    "get_stats_random_rollout",
    "make_actor_critic",
    "make_collector_offpolicy",
    "make_collector_onpolicy",
    "make_dqn_loss",
    "make_environment",
    "make_evaluation",
    "make_learner",
    "make_mixture",
    "make_offline_source",
    "make_policy",
    "make_q_cnn",
    "make_q_network",
    "make_replay_buffer",
    "make_target_updater",
    "make_trainer",
    "parallel_env_constructor",
    "restore_module",
    "sync_async_collector",
    "sync_sync_collector",
    "transformed_env",
    "transformed_env_constructor",
]
