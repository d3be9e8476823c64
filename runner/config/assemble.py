"""One checked configuration becomes the objects of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hooks.normalize_observations import normalizers_of
from runner.builders import acting_network, make_policy, make_trainer
from runner.config.build import Builder
from runner.envs.vector import Environment
from runner.evaluation import Evaluation
from runner.hook import TrainerHookBase
from runner.learner.module import ModuleLoss
from runner.learner.optimization import Optimization
from runner.metrics import Metrics
from runner.policy import distribution_of
from runner.schedules import on_the_axis_of
from runner.seeding import Streams
from runner.spec import ConfigError, DataSource, Progress
from runner.trainer import Trainer

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """The parts of a run that those who start it need to reach."""

    trainer: Trainer
    environment: Environment
    source: DataSource
    evaluation: Evaluation
    networks: Mapping[str, nn.Module]
    hooks: Mapping[str, TrainerHookBase]


def assemble(config: Config, run: Any = None) -> Experiment:
    """Build everything that ``config`` names.

    Args:
        config: resolved and checked; plain Python values.
        run: the run's folder, for loggers and checkpoints; without one there are none.
    """
    streams = Streams(config["seed"])
    streams.seed_globals("networks")
    progress = Progress(frame_skip=config["frame_skip"])
    builder = Builder(
        streams=streams,
        progress=progress,
        total_env_steps=_length(config),
        device=config["device"],
        compile=config["compile"],
        run=run,
    )
    environment = _build_acting(config, builder, streams)
    try:
        return _assemble_around(environment, config, builder, streams, run)
    except BaseException:
        builder.runtime["collector"].shutdown()
        raise


def _length(config: Config) -> int:
    """Of the whole run: in env steps, or in updates where nothing is played."""
    frames = config["total_frames"]
    return int(config["stop_after"]["updates"]) if frames is None else frames // config["frame_skip"]


def _assemble_around(
    environment: Environment, config: Config, builder: Builder, streams: Streams, run: Any
) -> Experiment:
    """All that is not needed for acting."""
    _build_learning(config, builder, streams)
    _check_capacity(builder.runtime["source"], builder.runtime["collector"])
    loggers = builder.build_all(config["logger"] if run is not None else {})
    trainer = make_trainer(
        collector=builder.runtime["collector"],
        learner=builder.runtime["learner"],
        source=builder.runtime["source"],
        total_frames=config["total_frames"],
        frame_skip=config["frame_skip"],
        metrics=Metrics(loggers.values()),
        checkpoint=builder.build(config["checkpoint"]) if run is not None else None,
        stop_after=config["stop_after"],
        log_every=config["log_every"],
        progress=builder.runtime["progress"],
    )
    trainer.register_module("streams", streams)
    hooks = _register_hooks(config, builder, trainer)
    _check_learning(trainer, list(hooks.values()))
    streams.seed_globals("run")
    runtime = builder.runtime
    return Experiment(trainer, environment, runtime["source"], runtime["evaluation"], runtime["networks"], hooks)


def _build_acting(config: Config, builder: Builder, streams: Streams) -> Environment:
    """Environment, networks, policy, collector."""
    runtime = builder.runtime
    environment = runtime["environment"] = builder.build(config["env"])
    runtime["spec"] = environment.spec
    runtime["networks"] = builder.build(config["network"])
    for network in runtime["networks"].values():
        network.to(config["device"])
    runtime["distribution"] = distribution_of(acting_network(runtime["networks"]), environment.spec)
    exploration = builder.build(config["exploration"], generator=streams.numpy("exploration"))
    runtime["policy"] = make_policy(runtime["networks"], environment.spec, exploration, config["device"])
    runtime["collector"] = builder.build(config["collector"])
    return environment


def _build_learning(config: Config, builder: Builder, streams: Streams) -> None:
    """Data source, loss, optimizer, learner, evaluation."""
    runtime = builder.runtime
    runtime["source"] = builder.build(config["source"], generator=streams.torch("sampler"))
    runtime["loss"] = builder.build(config["loss"])
    _check_loss_weights(config["learner"].get("loss_weights"), runtime["loss"])
    _check_outputs(runtime["source"], runtime["loss"])
    _check_networks(runtime["networks"], runtime["loss"], runtime["source"])
    runtime["scheduler"] = on_the_axis_of(runtime["progress"], builder.build(config["scheduler"]))
    runtime["target_updater"] = builder.build(config["target_updater"])
    runtime["optimizer"] = lambda params: builder.build(config["optimizer"], params=params)
    runtime["learner"] = builder.build(config["learner"], generator=streams.torch("loss noise"))
    _check_first(runtime["source"], runtime["learner"].optimizations())
    runtime["evaluation"] = builder.build(config["evaluation"])


def _check_capacity(source: Any, collector: Any) -> None:
    """Find out now, not at the first batch, if the source cannot take what the collector gives."""
    check = getattr(source, "check", None)
    if callable(check):
        check(*collector.batch.shape)


def _check_loss_weights(weights: Mapping[str, float] | None, loss: Any) -> None:
    """Find out now, not at the first update, if there is a weight for a term that the loss does not have."""
    terms = list(getattr(loss, "terms", ()))
    unknown = [name for name in weights or () if name not in terms]
    if unknown and not isinstance(loss, ModuleLoss):  # whose terms nobody knows before it is called
        raise ConfigError(f"learner.loss_weights.{unknown[0]}: the loss has no such term; it has {', '.join(terms)}")


def _check_networks(networks: Mapping[str, Any], loss: Any, source: Any) -> None:
    """Find out now, not at the first update, if the loss has not the networks that it works on, or not in sequences."""
    stages: Mapping[str, Any] = getattr(loss, "stages", {})
    wanted = [*getattr(loss, "networks", ()), *(name for stage in stages.values() for name in stage.networks)]
    missing = [name for name in wanted if name not in networks]
    if missing:
        there = ", ".join(networks)
        raise ConfigError(f"network: {type(loss).__name__} works on one called {missing[0]}; this choice has {there}")
    if any(getattr(one, "memory_size", 0) for one in networks.values()) and not getattr(source, "length", 0):
        raise ConfigError(
            "network: it remembers episodes, so that updates need sequences of steps: source.sequence_length=16, "
            "with source=rollout"
        )


def _check_outputs(source: Any, loss: Any) -> None:
    """Find out now, not after the warm-up, if the source waits for what the loss does not give."""
    missing = [key for key in getattr(source, "needs", ()) if key not in getattr(loss, "outputs", ())]
    if missing and not isinstance(loss, ModuleLoss):
        raise ConfigError(
            f"source: it draws by {missing[0]}, which {type(loss).__name__} does not name among its outputs"
        )


def _check_first(source: Any, optimizations: Sequence[Optimization]) -> None:
    """Find out now, not in the first update without the first optimization, if the source waits for what that gives."""
    first, *others = optimizations
    without = [one for one in others if one.every % first.every]
    if getattr(source, "needs", ()) and without:
        raise ConfigError(
            f"learner.optimizations.{first.name}.every={first.every}: the source draws by {source.needs[0]}, which "
            f"{first.name} gives, and {without[0].name} (every={without[0].every}) would be due without it"
        )


def _check_learning(trainer: Trainer, hooks: Sequence[Any]) -> None:
    """Refuse a run that would go to its end without learning as its settings say, for want of a hook."""

    def has(name: str, part: Any) -> bool:
        return any(getattr(hook, name, None) is part for hook in hooks)

    missing = ""
    if not trainer.operations("optimizer"):
        missing = "no hook moves the weights"
    elif _keeps_data(trainer.source) and not has("source", trainer.source):
        missing = "no hook feeds the source and draws from it"
    elif hasattr(trainer.collector, "crew") and not has("collector", trainer.collector):
        missing = "no hook sends new weights to the worker processes"
    elif normalizers_of(trainer.learner) and not any(getattr(hook, "normalizers", None) for hook in hooks):
        missing = "no hook shows observations to the network that normalizes them"
    if missing:
        raise ConfigError(f"learning: {missing}; learning=[off_policy,...] has the hooks that a run needs")
    _check_order(trainer)


def _check_order(trainer: Trainer) -> None:
    """Refuse what adds entries to a batch that has been handed to the source before."""
    owners = [getattr(operation, "__self__", operation) for operation in trainer.operations("batch_process")]
    feeds = next(
        (place for place, owner in enumerate(owners) if getattr(owner, "source", None) is trainer.source), None
    )
    late = [owner for owner in owners[feeds:] if hasattr(owner, "estimator")] if feeds is not None else []
    if late:
        raise ConfigError(
            "learning: advantages are estimated after the batch was handed to the source: name the estimator first, "
            "as in learning=[gae,on_policy]"
        )


def _keeps_data(source: Any) -> bool:
    return hasattr(source, "storage") or getattr(source, "is_fixed", False)


def _register_hooks(config: Config, builder: Builder, trainer: Trainer) -> dict[str, TrainerHookBase]:
    builder.runtime["trainer"] = trainer
    named: dict[str, TrainerHookBase] = {}
    for group in ("learning", "hooks"):
        for name, hook in builder.build_all(config[group] or {}).items():
            hook.register(trainer, name)
            named[name] = hook
    return named
