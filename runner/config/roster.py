"""Who takes part in a run of several modules: each with parts of its own, made as those of a run of one are."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from runner.collectors.by_module import CollectorByModule
from runner.config.at_points import HooksOfModules
from runner.config.build import Builder
from runner.config.changes import (
    Change,
    Offer,
    check_changes,
    due,
    frames_of,
    not_alike,
    own_env_steps,
    shapes_of,
)
from runner.config.member import Member, RunOfModule
from runner.config.modules import wrong_id
from runner.config.parts import Config, build_acting, build_module, check_capacity, check_first
from runner.config.targets import resolve_target
from runner.data.by_module import SourceByModule
from runner.evaluation import EvaluationByModule
from runner.hook import TrainerHookBase
from runner.learner.learner import Learner
from runner.learner.module import ModuleSpec
from runner.learner_builders import build_learner, restore_modules
from runner.seeding import Streams, stream_seed, unchanged_globals
from runner.spec import LARGEST_COUNT, CheckpointError, ConfigError, EnvFault, Progress, StateDict

log = logging.getLogger(__name__)


class Added(NamedTuple):
    """A module that a hook has added: the hook's name, over how many env steps its schedules go, and after how many of
    the run it came, which tells it from others that were called the same."""

    hook: str
    length: int
    since: int = 0


class Roster:
    """Makes the modules of a run, and hands each hook of a module its part of every batch.

    Nothing of a module depends on which others there are: its streams of random numbers come from its id, its
    schedules follow its own env steps, and a module that is added or removed changes no bit of the others.

    Args:
        config: of the whole run.
        builder: the run's, with what all modules share.
        check: raises ``ConfigError`` for a module that, with its own hooks and those of the run, would not learn.
    """

    def __init__(self, config: Config, builder: Builder, check: Callable[[Member, Sequence[Any]], None]) -> None:
        self.config, self.builder, self._check = config, builder, check
        self.members: dict[str, Member] = {}
        self.hooks: dict[str, TrainerHookBase] = {}
        """Those of the run, and those of each module as ``<id>/<name>``."""
        self.hook_names: list[str] = []
        """Those of which each module has one."""
        self.offers: dict[str, Offer] = {}
        self._changes: list[Change] = []
        self._added: dict[str, Added] = {}
        self._trainer: Any = None
        try:
            for module_id, length in self._lengths().items():
                self.members[module_id] = self._make(module_id, config["modules"][module_id], length)
            self._put_together()
        except BaseException:
            self.shutdown()
            raise

    def _lengths(self) -> dict[str, int]:
        """The env steps that each module would have played at the end of the run if nobody came or went."""
        frames = {module_id: frames_of(tree) for module_id, tree in self.config["modules"].items()}
        total = self.builder.runtime["total_env_steps"]
        return {module_id: total * own // sum(frames.values()) for module_id, own in frames.items()}

    def _make(self, module_id: str, tree: Config, length: int, since: int = 0) -> Member:
        """All parts of a module, drawn from streams of its own; what it writes is not where one before it wrote."""
        shared = self.builder.runtime
        streams = Streams(stream_seed(shared["streams"].seed, "module", module_id))
        builder = Builder(
            streams=streams,
            progress=Progress(frame_skip=shared["progress"].frame_skip),
            total_env_steps=length,
            device=shared["device"],
            compile=shared["compile"],
            run=None if shared["run"] is None else RunOfModule(shared["run"], module_id, since),
        )
        whole = {**tree, "device": shared["device"]}
        with unchanged_globals():
            streams.seed_globals("networks")
            try:
                spec = _build(whole, builder, streams)
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"module {module_id}: {error}") from error
            except EnvFault as fault:
                raise EnvFault(f"module {module_id}: {fault}") from fault
        return Member(module_id, tree, builder, spec)

    def _put_together(self) -> None:
        """The parts of all modules as the parts of one run."""
        runtime, members = self.builder.runtime, self.members
        collectors = {module_id: member.collector for module_id, member in members.items()}
        self.collector = CollectorByModule(collectors, runtime["progress"], self._who, self._become)
        self.source = SourceByModule(
            {module_id: member.source for module_id, member in members.items()},
            lambda module_id: self.members[module_id].is_warm,
        )
        evaluations = {module_id: member.evaluation for module_id, member in members.items()}
        self.evaluation = EvaluationByModule(evaluations, self.config["evaluation"]["every"])
        self.learner = self._make_learner()
        runtime |= {"collector": self.collector, "source": self.source, "learner": self.learner}
        runtime |= {"evaluation": self.evaluation, "roster": self}

    def _make_learner(self) -> Learner:
        """One learner of all modules, of the kind that is wanted."""
        runtime = self.builder.runtime
        options: Config = self.config["learner"]
        kind, precision = self.builder.build_later(options.get("kind")), options.get("precision", "fp32")
        specs = {module_id: member.spec for module_id, member in self.members.items()}
        learner = build_learner(specs, kind, runtime["progress"], runtime["compile"], precision, self._chosen())
        for member in self.members.values():
            _check_module(member, learner)
        learner.is_keyed = True
        restore_modules(learner, self.config["learner"].get("restore"), runtime["run"])
        return learner

    def register(self, trainer: Any) -> None:
        """Stand at every point of the loop, before the run's own hooks."""
        self._trainer = trainer
        HooksOfModules(self.members, trainer)
        trainer.register_module("modules", self)
        for member in self.members.values():
            member.join(trainer)

    def register_hook(self, member: Member, name: str) -> None:
        """Build the hook of that name for a module, if it has one, and register it."""
        own = member.config.get("learning") or {}
        node = own.get(name) if name in own else (self.config["hooks"] or {}).get(name)
        if node is None:
            return
        streams: Streams = member.builder.runtime["streams"]
        with unchanged_globals():
            streams.seed_globals(f"hook {name}")
            hook = member.builder.build(node)
        hook.register(member, name)
        member.hooks[name] = self.hooks[f"{member.module_id}/{name}"] = hook

    def offer(
        self, hook: str, at: Mapping[str, float], module_id: str, tree: Config, like: str | None, maker: Any = None
    ) -> None:
        """Let ``hook`` add a module later; what is wrong with it is found out now, by making one."""
        if words := wrong_id(module_id):
            raise ConfigError(f"hooks.{hook}.module_id: {words}")
        trial = self._make(module_id, tree, 1)
        try:
            learner = build_learner({module_id: trial.spec})
            _check_module(trial, learner)
            self.source.check(module_id, trial.source)
        except ValueError as error:
            raise ConfigError(f"hooks.{hook}: {error}") from error
        finally:
            trial.collector.shutdown()
            trial.evaluation.close()
        self.offers[hook] = Offer(module_id, tree, like, shapes_of(learner.modules[module_id]))
        self.expect(hook, at, module_id, self.offers[hook], maker)

    def expect(
        self, hook: str, at: Mapping[str, float], module_id: str, offer: Offer | None = None, maker: Any = None
    ) -> None:
        """``hook`` is going to add a module, or to remove one; ``maker`` is the hook itself."""
        ((unit, number),) = at.items()
        self._changes.append(Change(hook, unit, number, module_id, offer, maker))

    def make_changes(self) -> None:
        """Make all changes whose time has come, in the order of their times, whichever hook is the first to ask."""
        for change in due(self._changes, self.builder.runtime["progress"]):
            change.maker.is_done = True
            if change.offer is None:
                self.remove(change.module_id)
            else:
                self.add(change.hook)

    def check_changes(self) -> None:
        """Find out now, when all hooks are there, what would end the run when its time has come."""
        present = {module_id: shapes_of(module) for module_id, module in self.learner.modules.items()}
        runtime = self.builder.runtime
        check_changes(present, self._changes, runtime["progress"].frame_skip, runtime["total_env_steps"])

    def add(self, hook: str) -> None:
        """Let the module that ``hook`` has offered take part from the next batch on."""
        offer, runtime = self.offers[hook], self.builder.runtime
        if offer.module_id in self.members:
            raise ConfigError(f"hooks.{hook}: there is a module {offer.module_id} already, which was not removed")
        if offer.like is not None and offer.like not in self.members:
            raise ConfigError(f"hooks.{hook}: module {offer.like}, whose weights it is to begin with, was removed")
        frames = {one: frames_of(member.config) for one, member in self.members.items()}
        progress, end = runtime["progress"], runtime["total_env_steps"]
        length = own_env_steps(
            offer.module_id, {**frames, offer.module_id: frames_of(offer.tree)}, self._changes,
            progress.frame_skip, progress.env_steps, end,
        )  # fmt: skip
        member = self._insert(offer.module_id, offer.tree, Added(hook, length, progress.env_steps))
        if offer.like is not None:
            _begin_like(member, self.members[offer.like])
        log.info("module %s takes part from %s on", offer.module_id, runtime["progress"].place_in_words)

    def _insert(self, module_id: str, tree: Config, added: Added) -> Member:
        member = self._make(module_id, tree, added.length, added.since)
        self.source.add(module_id, member.source)
        self.members[module_id], self._added[module_id] = member, added
        self.learner.add_module(
            module_id=module_id, module_spec=member.spec, new_should_module_be_updated=self._chosen()
        )
        _check_module(member, self.learner)
        self.collector.add(module_id, member.collector)
        self.evaluation.add(module_id, member.evaluation)
        member.join(self._trainer)
        for name in self.hook_names:
            self.register_hook(member, name)
        self.check(member)
        return member

    def check(self, member: Member) -> None:
        """Refuse a module whose hooks are not what it needs."""
        of_run = [hook for name, hook in self.hooks.items() if "/" not in name]
        try:
            self._check(member, [*of_run, *member.hooks.values()])
        except ConfigError as error:
            raise ConfigError(f"module {member.module_id}: {error}") from error

    def remove(self, module_id: str) -> None:
        """Let a module go with all that belongs to it."""
        if module_id not in self.members:
            raise ConfigError(f"hooks: module {module_id} is to be removed, and has not been there since it was last")
        if len(self.members) == 1:
            raise ConfigError(f"hooks: module {module_id} is the last one, and a run needs one")
        self._take_out(module_id)
        log.info("module %s takes part no more", module_id)

    def _take_out(self, module_id: str) -> None:
        member = self.members.pop(module_id)
        self._added.pop(module_id, None)
        member.close()
        self.learner.remove_module(module_id, new_should_module_be_updated=self._chosen())
        for composite in (self.collector, self.source, self.evaluation):
            composite.remove(module_id)
        for shown in (self.hooks, self._trainer.pbar_values):
            for name in [name for name in shown if name.startswith(f"{module_id}/")]:
                del shown[name]

    def _chosen(self) -> Any:
        """Which modules are trained, of those that there are."""
        chosen = self.config.get("modules_to_train")
        if isinstance(chosen, str):
            return resolve_target(chosen)
        return chosen if chosen is None else [one for one in chosen if one in self.members]

    def _who(self) -> StateDict:
        return {module_id: list(self._added.get(module_id, ())) for module_id in self.members}

    def _become(self, saved: StateDict) -> None:
        """Be those who took part in the run when it was saved."""
        now = self._who()
        for module_id in [one for one in now if saved.get(one) != now[one]]:
            self._take_out(module_id)
        for module_id in [one for one in saved if one not in self.members]:
            self._bring_back(module_id, saved[module_id])

    def _bring_back(self, module_id: str, entry: list[Any]) -> None:
        if not entry and module_id in self.config["modules"]:
            added, tree = Added("", self._lengths()[module_id]), self.config["modules"][module_id]
        elif entry and entry[0] in self.offers and self.offers[entry[0]].module_id == module_id:
            added, tree = _checked(Added(*entry)), self.offers[entry[0]].tree
        else:
            words = f"the hook {entry[0]}, which this run does not have" if entry else "a configuration"
            raise CheckpointError(f"module {module_id} came by {words}")
        self._insert(module_id, tree, added)
        if not entry:
            del self._added[module_id]

    def shutdown(self) -> None:
        for member in self.members.values():
            member.collector.shutdown()

    def state_dict(self) -> StateDict:
        """Of the modules' hooks."""
        return {module_id: member.state_dict() for module_id, member in self.members.items()}

    def load_state_dict(self, state: StateDict) -> None:
        self.learner.modules_to_train = self._chosen()  # what is configured now, and not what was
        for module_id, member in self.members.items():
            member.load_state_dict(state[module_id])


def _build(config: Config, builder: Builder, streams: Streams) -> ModuleSpec:
    build_acting(config, builder, streams)
    try:
        if not builder.runtime["collector"].frames_per_batch:
            raise ConfigError("collector: it plays nothing, and several modules learn from what they play")
        spec = build_module(config, builder, streams)
        check_capacity(builder.runtime["source"], builder.runtime["collector"])
        return spec
    except BaseException:
        builder.runtime["collector"].shutdown()
        raise


def _check_module(member: Member, learner: Learner) -> None:
    try:
        check_first(member.source, learner.modules[member.module_id].optimizations)
    except ConfigError as error:
        raise ConfigError(f"module {member.module_id}: {error}") from error


def _checked(added: Added) -> Added:
    """``CheckpointError`` for numbers that no run has saved: they say where files are."""
    if not all(type(one) is int and 0 <= one < LARGEST_COUNT for one in added[1:]):
        raise CheckpointError(f"a module that came after {added.since!r:.20} env steps, for {added.length!r:.20}")
    return added


def _begin_like(member: Member, other: Member) -> None:
    """Give a module the weights of another, and of its targets; what moves them begins anew."""
    try:
        for name, network in member.module.networks.items():
            network.load_state_dict(other.module.networks[name].state_dict())
    except (KeyError, RuntimeError) as error:
        raise ConfigError(not_alike(member.module_id, other.module_id)) from error
