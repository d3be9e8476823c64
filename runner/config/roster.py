"""Who takes part in a run of several modules: each with parts of its own, made as those of a run of one are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tensordict import TensorDict, TensorDictBase

from runner.collectors.by_module import CollectorByModule
from runner.config.build import Builder
from runner.config.member import Member, RunOfModule
from runner.config.parts import Config, build_acting, build_learning, check_capacity
from runner.data.by_module import SourceByModule
from runner.evaluation import EvaluationByModule
from runner.hook import TrainerHookBase
from runner.learner.learner import Learner
from runner.points import POINTS
from runner.schedules import over_own_env_steps
from runner.seeding import Streams, stream_seed, unchanged_globals
from runner.spec import ConfigError, EnvFault, Progress, StateDict, parts_of


class Added(NamedTuple):
    """A module that a hook has added: the hook's name, and over how many env steps its schedules go."""

    hook: str
    length: int


class Roster:
    """Makes the modules of a run, and hands each hook of a module its part of every batch.

    Nothing of a module depends on which others there are: its streams of random numbers come from its id, its
    schedules follow its own env steps, and a module that is added or removed changes no bit of the others.

    Args:
        config: of the whole run.
        builder: the run's, with what all modules share.
    """

    def __init__(self, config: Config, builder: Builder) -> None:
        self.config, self.builder = config, builder
        self.members: dict[str, Member] = {}
        self.hooks: dict[str, TrainerHookBase] = {}
        """Those of the run, and those of each module as ``<id>/<name>``."""
        self.offers: dict[str, Mapping[str, Any]] = {}
        """The trees of modules that hooks may add, by the hook's name."""
        self._added: dict[str, Added] = {}
        self._trainer: Any = None
        try:
            for module_id, length in self._lengths().items():
                self.members[module_id] = self._make(module_id, config["modules"][module_id], length)
        except BaseException:
            self.shutdown()
            raise
        self._put_together()

    def _lengths(self) -> dict[str, int]:
        """The env steps that each module will have played at the end of the run."""
        frames = {module_id: _frames(tree) for module_id, tree in self.config["modules"].items()}
        total = self.builder.runtime["total_env_steps"]
        return {module_id: total * own // sum(frames.values()) for module_id, own in frames.items()}

    def _make(self, module_id: str, tree: Config, length: int) -> Member:
        """All parts of a module, drawn from streams of its own."""
        shared = self.builder.runtime
        streams = Streams(stream_seed(shared["streams"].seed, "module", module_id))
        builder = Builder(
            streams=streams,
            progress=Progress(frame_skip=shared["progress"].frame_skip),
            total_env_steps=length,
            device=shared["device"],
            compile=shared["compile"],
            run=None if shared["run"] is None else RunOfModule(shared["run"], module_id),
        )
        whole = {**tree, "device": shared["device"]}
        with unchanged_globals():
            streams.seed_globals("networks")
            try:
                _build(whole, builder, streams)
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"module {module_id}: {error}") from error
            except EnvFault as fault:
                raise EnvFault(f"module {module_id}: {fault}") from fault
        return Member(module_id, tree, builder)

    def _put_together(self) -> None:
        """The parts of all modules as the parts of one run."""
        runtime, members = self.builder.runtime, self.members
        self.collector = CollectorByModule(
            {module_id: member.collector for module_id, member in members.items()}, runtime["progress"]
        )
        self.collector.members, self.collector.prepare = self._who, self._become
        self.source = SourceByModule(
            {module_id: member.source for module_id, member in members.items()},
            lambda module_id: self.members[module_id].progress.env_steps,
        )
        evaluations = {module_id: member.evaluation for module_id, member in members.items()}
        self.evaluation = EvaluationByModule(evaluations, self.config["evaluation"]["every"])
        modules = {module_id: member.module for module_id, member in members.items()}
        self.learner = Learner(modules, runtime["progress"], runtime["compile"])
        runtime |= {"collector": self.collector, "source": self.source, "learner": self.learner}
        runtime |= {"evaluation": self.evaluation, "roster": self}

    def register(self, trainer: Any) -> None:
        """Stand at every point of the loop, before the run's own hooks."""
        self._trainer = trainer
        for point, kind in POINTS.items():
            if kind != "optimization":
                trainer.register_op(point, AtPoint(self, point))
        trainer.register_module("modules", self)
        for member in self.members.values():
            member.join(trainer)

    def register_hook(self, member: Member, name: str) -> None:
        """Build the hook of that name for a module, if it has one, and register it."""
        own = member.config.get("learning") or {}
        node = own.get(name) if name in own else (self.config["hooks"] or {}).get(name)
        if node is None:
            return
        hook = member.builder.build(node)
        hook.register(member, name)
        member.hooks[name] = self.hooks[f"{member.module_id}/{name}"] = hook

    def call(self, point: str, *batches: TensorDictBase) -> Any:
        """What the modules' hooks do at a point of the loop."""
        if point == "process_optim_batch":
            return self._draw(*batches)
        if point == "batch_process":
            return self._process(*batches)
        if point == "pre_optim_steps":
            for member in self.members.values():
                member.optim_stopped = False
        if point == "post_optim":
            for member in self._updated():
                member.progress.updates += 1
        for module_id, member in list(self.members.items()):
            self._call_one(point, module_id, member, *batches)
        if point == "post_loss" and all(one.optim_stopped for one in self.members.values() if one.is_warm):
            self._trainer.optim_stopped = True
        return None

    def _call_one(self, point: str, module_id: str, member: Member, *batches: TensorDictBase) -> None:
        if batches and module_id not in batches[0].keys():
            return  # it came later, or is not in this update
        parts = [batch.get(module_id) for batch in batches]
        if POINTS[point] == "log":
            member.log(point, *parts)
        elif point != "post_optim" or member.is_updated:
            member.operate(point, *parts)

    def _process(self, batch: TensorDictBase) -> TensorDictBase:
        parts: dict[str, Any] = {
            module_id: self.members[module_id].process("batch_process", part)
            for module_id, part in parts_of(batch).items()
        }
        return TensorDict(parts, [])

    def _draw(self, batch: TensorDictBase) -> TensorDictBase:
        """A sub-batch of each module that takes part in this update."""
        parts: dict[str, Any] = {}
        for module_id, part in parts_of(batch).items():
            member = self.members[module_id]
            member.is_updated = member.is_warm and not member.optim_stopped
            if member.is_updated:
                parts[module_id] = member.process("process_optim_batch", part)
        return TensorDict(parts, [])

    def _updated(self) -> list[Member]:
        return [member for member in self.members.values() if member.is_updated]

    def schedule(self, point: str) -> str:
        """The modules' operations at a point, by their names."""
        named = {module_id: member.names(point) for module_id, member in self.members.items()}
        return "; ".join(f"{module_id}: {', '.join(names)}" for module_id, names in named.items() if names)

    def _who(self) -> StateDict:
        return {module_id: list(self._added.get(module_id, ())) for module_id in self.members}

    def _become(self, members: StateDict) -> None:
        """Be those who took part in the run when it was saved."""

    def shutdown(self) -> None:
        for member in self.members.values():
            member.collector.shutdown()

    def state_dict(self) -> StateDict:
        """Of the modules' hooks."""
        return {module_id: member.state_dict() for module_id, member in self.members.items()}

    def load_state_dict(self, state: StateDict) -> None:
        for module_id, member in self.members.items():
            member.load_state_dict(state[module_id])


class AtPoint:
    """What stands for all modules' hooks at one point of the loop; shown by their names."""

    def __init__(self, roster: Roster, point: str) -> None:
        self.roster, self.point = roster, point

    def __call__(self, *batches: TensorDictBase) -> Any:
        return self.roster.call(self.point, *batches)

    @property
    def shown_as(self) -> str:
        return self.roster.schedule(self.point) or "-"


def _build(config: Config, builder: Builder, streams: Streams) -> None:
    build_acting(config, builder, streams)
    try:
        build_learning(config, builder, streams, over_own_env_steps)
        check_capacity(builder.runtime["source"], builder.runtime["collector"])
    except BaseException:
        builder.runtime["collector"].shutdown()
        raise
    builder.runtime["made"] = builder.runtime["learner"]


def _frames(tree: Config) -> int:
    """Env steps of a batch, which say how fast a module plays."""
    return int(tree["collector"].get("frames_per_batch") or 1)
