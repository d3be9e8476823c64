"""The parts that an agent consists of, from its configuration; checked against each other before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.builders import acting_network, make_learner, make_policy
from runner.config.build import Builder
from runner.config.targets import resolve_target
from runner.envs.vector import Environment
from runner.learner.module import ModuleLoss, ModuleSpec, loss_names
from runner.learner.optimization import Optimization
from runner.policy import distribution_of
from runner.schedules import Schedule, on_the_axis_of, over_own_env_steps
from runner.seeding import Streams
from runner.spec import ConfigError, Progress

Config = Mapping[str, Any]


def build_acting(config: Config, builder: Builder, streams: Streams) -> Environment:
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


SPEC = "runner.learner_builders.make_module_spec"
Clock = Callable[[Progress, Schedule | None], Schedule | None]
"""Which counter a schedule of learning rates is read at."""


def build_learning(config: Config, builder: Builder, streams: Streams) -> None:
    """Data source, loss, optimizer, evaluation, and the learner of a run of one agent."""
    runtime = builder.runtime
    _build_learnt(config, builder, streams, on_the_axis_of)
    runtime["learner"] = builder.build(config["learner"], generator=streams.torch("loss noise"))
    check_first(runtime["source"], runtime["learner"].optimizations())


def build_module(config: Config, builder: Builder, streams: Streams) -> ModuleSpec:
    """The same of one of several agents, but for the learner, which they share: what that is to make of it."""
    _build_learnt(config, builder, streams, over_own_env_steps)
    if resolve_target(config["learner"]["_target_"]) is not make_learner:
        words = "several modules are in one learner, which is made here"
        raise ConfigError(f"learner._target_: {words}; one of your own is named as learner.kind")
    spec: ModuleSpec = builder.build({**config["learner"], "_target_": SPEC}, generator=streams.torch("loss noise"))
    return spec


def _build_learnt(config: Config, builder: Builder, streams: Streams, clock: Clock) -> None:
    runtime = builder.runtime
    runtime["source"] = builder.build(config["source"], generator=streams.torch("sampler"))
    runtime["loss"] = builder.build(config["loss"])
    _check_loss_weights(config["learner"].get("loss_weights"), runtime["loss"])
    _check_outputs(runtime["source"], runtime["loss"])
    _check_networks(runtime["networks"], runtime["loss"], runtime["source"])
    runtime["scheduler"] = clock(runtime["progress"], builder.build(config["scheduler"]))
    runtime["target_updater"] = builder.build(config["target_updater"])
    runtime["optimizer"] = lambda params: builder.build(config["optimizer"], params=params)
    runtime["evaluation"] = builder.build(config["evaluation"])


def check_capacity(source: Any, collector: Any) -> None:
    """Find out now, not at the first batch, if the source cannot take what the collector gives."""
    check = getattr(source, "check", None)
    if callable(check):
        check(*collector.batch.shape)


def _check_loss_weights(weights: Mapping[str, float] | None, loss: Any) -> None:
    """Find out now, not at the first update, if there is a weight for a term that the loss does not have."""
    terms = loss_names(loss)
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


def check_first(source: Any, optimizations: Sequence[Optimization]) -> None:
    """Find out now, not in the first update without the first optimization, if the source waits for what that gives."""
    if not optimizations:  # a learner of the user's own moves nothing there
        return
    first, *others = optimizations
    without = [one for one in others if one.every % first.every]
    if getattr(source, "needs", ()) and without:
        raise ConfigError(
            f"learner.optimizations.{first.name}.every={first.every}: the source draws by {source.needs[0]}, which "
            f"{first.name} gives, and {without[0].name} (every={without[0].every}) would be due without it"
        )
