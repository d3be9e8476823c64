"""Collectors of every kind, made from an environment or from functions that make one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Required, TypedDict, Unpack

import gymnasium
from tensordict import TensorDictBase

from runner.collectors.asynchronous import AsyncCollector
from runner.collectors.batches import Batches
from runner.collectors.in_process import InProcessCollector
from runner.collectors.synchronous import SyncCollector
from runner.envs.gym import make_env
from runner.envs.vector import Environment
from runner.spec import Actor, EnvSpec, Progress
from runner.types import NonNegativeInt, PositiveInt

EnvMaker = Callable[..., gymnasium.Env]
Postproc = Callable[[TensorDictBase], TensorDictBase]


def make_collector_offpolicy(
    environment: Environment,
    policy: Actor,
    frames_per_batch: PositiveInt = 10,
    init_random_frames: NonNegativeInt = 0,
    num_collectors: PositiveInt | None = None,
    env_per_collector: PositiveInt | None = None,
    async_collection: bool = False,
    max_failures: NonNegativeInt = 10,
    progress: Progress | None = None,
    run: Any = None,
) -> Batches:
    """A collector that plays ``frames_per_batch`` env steps between two rounds of updates.

    Args:
        init_random_frames: env steps at the start of the run whose actions are random.
        num_collectors: processes that share the environments; 1 is the run's own, unless collection is asynchronous.
        env_per_collector: says the same by the number of environments of each.
        async_collection: workers play on while the run learns.
        max_failures: deaths of workers after which the run ends, saved.
        run: the run's folder, whose lock the workers must not hold.
    """
    if num_collectors is None and env_per_collector is None:
        num_collectors = 1
    make = sync_async_collector if async_collection else sync_sync_collector
    return make(
        environment,
        num_env_per_collector=env_per_collector,
        num_collectors=num_collectors,
        policy=policy,
        frames_per_batch=frames_per_batch,
        init_random_frames=init_random_frames,
        max_failures=max_failures,
        progress=progress,
        run=run,
    )


def make_collector_onpolicy(
    environment: Environment,
    policy: Actor,
    frames_per_batch: PositiveInt = 1000,
    num_collectors: PositiveInt | None = None,
    env_per_collector: PositiveInt | None = None,
    max_failures: NonNegativeInt = 10,
    progress: Progress | None = None,
    run: Any = None,
) -> Batches:
    """The same for methods that learn from what the current policy did: never asynchronous, no random frames."""
    return make_collector_offpolicy(
        environment,
        policy,
        frames_per_batch,
        num_collectors=num_collectors,
        env_per_collector=env_per_collector,
        max_failures=max_failures,
        progress=progress,
        run=run,
    )


class CollectorOptions(TypedDict, total=False):
    """What :func:`sync_sync_collector` and :func:`sync_async_collector` take by name.

    Attributes:
        policy: a policy, or what makes it from the ``EnvSpec``.
        frames_per_batch: env steps of a batch (200).
        total_frames: env steps after which there are no more batches; -1 for no end.
        max_frames_per_traj: env steps after which an episode is truncated; -1 for the environment's own limit.
        init_random_frames: env steps at the start whose actions are random (0).
        postproc: applied to each batch.
        seed: of environments that are made here (0).
        max_failures: deaths of workers after which the run ends (10).
        progress: the run's counters.
        run: the run's folder, whose lock workers must not hold.
    """

    policy: Required[Actor | Callable[[EnvSpec], Actor]]
    frames_per_batch: PositiveInt
    total_frames: int
    max_frames_per_traj: int
    init_random_frames: NonNegativeInt
    postproc: Postproc | None
    seed: NonNegativeInt
    max_failures: NonNegativeInt
    progress: Progress | None
    run: Any


def sync_sync_collector(
    env_fns: Environment | EnvMaker | Sequence[EnvMaker],
    env_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    num_env_per_collector: PositiveInt | None = None,
    num_collectors: PositiveInt | None = None,
    **options: Unpack[CollectorOptions],
) -> Batches:
    """A collector in step with the updates: in this process for one collector, else by so many processes.

    Args:
        env_fns: makes an environment; or one such function for each; or an :class:`Environment` made already.
        env_kwargs: arguments of the functions, the same for all or for each its own.
        num_env_per_collector, num_collectors: both for a single function; else one of them follows from the other.
    """
    return _make_collector(False, env_fns, env_kwargs, num_env_per_collector, num_collectors, **options)


def sync_async_collector(
    env_fns: Environment | EnvMaker | Sequence[EnvMaker],
    env_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    num_env_per_collector: PositiveInt | None = None,
    num_collectors: PositiveInt | None = None,
    **options: Unpack[CollectorOptions],
) -> Batches:
    """A collector whose processes play on beside the updates; the arguments are those of `sync_sync_collector`."""
    return _make_collector(True, env_fns, env_kwargs, num_env_per_collector, num_collectors, **options)


def _make_collector(
    is_async: bool,
    env_fns: Environment | EnvMaker | Sequence[EnvMaker],
    env_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    per_collector: int | None,
    collectors: int | None,
    *,
    policy: Any,
    frames_per_batch: int = 200,
    total_frames: int = -1,
    max_frames_per_traj: int = -1,
    postproc: Postproc | None = None,
    seed: int = 0,
    max_failures: int = 10,
    run: Any = None,
    **common: Any,
) -> Batches:
    """``common`` are further arguments that collectors of all kinds have."""
    if isinstance(env_fns, Environment):
        environment = env_fns
    else:
        makers = _makers(env_fns, env_kwargs, per_collector, collectors, max_frames_per_traj)
        environment = Environment(makers, len(makers), None, 1, seed)
    number = _number_of_collectors(environment.num_envs, per_collector, collectors)
    acting = policy if hasattr(policy, "greedy") else policy(environment.spec)
    common |= {"environment": environment, "policy": acting, "frames_per_batch": frames_per_batch}
    let_go = run.unlock if run is not None else lambda: None
    of_workers: dict[str, Any] = {"num_collectors": number, "max_failures": max_failures, "let_go": let_go}
    collector: Batches
    if is_async:
        collector = AsyncCollector(**common, **of_workers)
    else:
        collector = SyncCollector(**common, **of_workers) if number > 1 else InProcessCollector(**common)
    collector.postproc, collector.total_frames = postproc, total_frames if total_frames >= 0 else None
    return collector


def _makers(
    env_fns: EnvMaker | Sequence[EnvMaker],
    env_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    per_collector: int | None,
    collectors: int | None,
    longest: int,
) -> list[Callable[[], gymnasium.Env]]:
    """A function without arguments for each environment."""
    if callable(env_fns):
        if per_collector is None or collectors is None:
            raise ValueError("one function for all environments needs num_env_per_collector and num_collectors")
        env_fns = [env_fns] * (per_collector * collectors)
    kwargs = [env_kwargs or {}] * len(env_fns) if not isinstance(env_kwargs, Sequence) else list(env_kwargs)
    if len(kwargs) != len(env_fns):
        raise ValueError(f"{len(kwargs)} env_kwargs for {len(env_fns)} environments")
    limit = longest if longest > 0 else None
    return [
        partial(make_env, "", {}, partial(make, **own), limit, 1) for make, own in zip(env_fns, kwargs, strict=True)
    ]


def _number_of_collectors(num_envs: int, per_collector: int | None, collectors: int | None) -> int:
    if per_collector is None and collectors is None:
        raise ValueError("num_env_per_collector or num_collectors has to be given")
    number = collectors or -(-num_envs // (per_collector or 1))
    if number * (per_collector or num_envs) < num_envs:
        raise ValueError(
            f"{number} collectors of {per_collector} environments each have no room for {num_envs} environments"
        )
    return number
