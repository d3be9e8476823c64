"""One checked configuration becomes the objects of one run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from runner.builders import make_trainer
from runner.config.build import Builder
from runner.config.member import Member
from runner.config.parts import Config, build_acting, build_learning, check_capacity
from runner.config.registered import check_learning, register_hooks, register_hooks_of_modules
from runner.config.roster import Roster
from runner.data.by_module import SourceByModule
from runner.envs.vector import Environment
from runner.evaluation import Evaluation, EvaluationByModule
from runner.hook import TrainerHookBase
from runner.metrics import Metrics
from runner.seeding import Streams
from runner.spec import DataSource, Progress
from runner.trainer import Trainer


@dataclass(frozen=True)
class Experiment:
    """The parts of a run that those who start it need to reach.

    Of a run of several modules, ``environment`` is that of the first, ``networks`` are called ``<id>/<name>``, and
    ``modules`` has what is each module's own.
    """

    trainer: Trainer
    environment: Environment
    source: DataSource | SourceByModule
    evaluation: Evaluation | EvaluationByModule
    networks: Mapping[str, nn.Module]
    hooks: Mapping[str, TrainerHookBase]
    modules: Mapping[str, Member] = field(default_factory=dict)


def assemble(config: Config, run: Any = None) -> Experiment:
    """Build everything that ``config`` names.

    Args:
        config: resolved and checked; plain Python values.
        run: the run's folder, for loggers and checkpoints; without one there are none.
    """
    streams = Streams(config["seed"])
    streams.seed_globals("networks")
    builder = Builder(
        streams=streams,
        progress=Progress(frame_skip=config["frame_skip"]),
        total_env_steps=_length(config),
        device=config["device"],
        compile=config["compile"],
        run=run,
    )
    if config.get("modules"):
        experiment = _assemble_modules(config, builder, run)
    else:
        experiment = _assemble_one(config, builder, run)
    streams.seed_globals("run")
    return experiment


def _length(config: Config) -> int:
    """Of the whole run: in env steps, or in updates where nothing is played."""
    frames = config["total_frames"]
    return int(config["stop_after"]["updates"]) if frames is None else frames // config["frame_skip"]


def _assemble_one(config: Config, builder: Builder, run: Any) -> Experiment:
    runtime = builder.runtime
    environment = build_acting(config, builder, runtime["streams"])
    try:
        build_learning(config, builder, runtime["streams"])
        check_capacity(runtime["source"], runtime["collector"])
        trainer = _make_trainer(config, builder, run)
        hooks = register_hooks(config, builder, trainer)
        check_learning(trainer, list(hooks.values()))
    except BaseException:
        runtime["collector"].shutdown()
        raise
    return Experiment(trainer, environment, runtime["source"], runtime["evaluation"], runtime["networks"], hooks)


def _assemble_modules(config: Config, builder: Builder, run: Any) -> Experiment:
    """A run of several modules: what they have in common, around what is each one's own."""
    roster = Roster(config, builder, check_learning)
    members = roster.members
    try:
        trainer = _make_trainer(config, builder, run)
        roster.register(trainer)
        register_hooks_of_modules(config, builder, trainer, roster)
    except BaseException:
        roster.shutdown()
        raise
    named = {f"{one.module_id}/{name}": network for one in members.values() for name, network in one.networks.items()}
    first = next(iter(members.values())).environment
    return Experiment(trainer, first, roster.source, roster.evaluation, named, roster.hooks, members)


def _make_trainer(config: Config, builder: Builder, run: Any) -> Trainer:
    runtime = builder.runtime
    loggers = builder.build_all(config["logger"] if run is not None else {})
    trainer = make_trainer(
        collector=runtime["collector"],
        learner=runtime["learner"],
        source=runtime["source"],
        total_frames=config["total_frames"],
        frame_skip=config["frame_skip"],
        metrics=Metrics(loggers.values()),
        checkpoint=builder.build(config["checkpoint"]) if run is not None else None,
        stop_after=config["stop_after"],
        log_every=config["log_every"],
        progress=runtime["progress"],
    )
    trainer.register_module("streams", runtime["streams"])
    runtime["trainer"] = trainer
    return trainer
