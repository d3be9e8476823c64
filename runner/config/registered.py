"""The hooks of a run, registered in their order, and whether they are what the run needs to learn."""

from collections.abc import Sequence
from typing import Any

from hooks.normalize_observations import normalizers_of
from runner.config.build import Builder
from runner.config.member import Member
from runner.config.parts import Config
from runner.config.roster import Roster
from runner.config.signature import read_signature
from runner.config.targets import resolve_target
from runner.hook import TrainerHookBase
from runner.spec import ConfigError
from runner.trainer import Trainer

WITH_STEPS = ("batch_process", "pre_steps_log", "process_optim_batch", "post_loss", "post_optim_log")
"""The points at which hooks look at what was played."""
OF_A_MODULE = frozenset(
    """environment networks network loss policy spec source exploration distribution optimizer scheduler
    target_updater""".split()
)
"""Runtime values that each module has its own of; those of the run work on all modules at once."""


def check_learning(trainer: Trainer | Member, hooks: Sequence[Any]) -> None:
    """Refuse a run that would go to its end without learning as its settings say, for want of a hook."""

    def has(name: str, part: Any) -> bool:
        held = [getattr(hook, name, None) for hook in hooks]
        return any(one is part or part in getattr(one, "parts", {}).values() for one in held)

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


def _check_order(trainer: Trainer | Member) -> None:
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


def register_hooks(config: Config, builder: Builder, trainer: Trainer) -> dict[str, TrainerHookBase]:
    """Build and register the hooks of a run, in their order."""
    named: dict[str, TrainerHookBase] = {}
    for group in ("learning", "hooks"):
        for name, hook in builder.build_all(config[group] or {}).items():
            hook.register(trainer, name)
            named[name] = hook
    return named


def register_hooks_of_modules(config: Config, builder: Builder, trainer: Trainer, roster: Roster) -> None:
    """The same where there are several modules: one of the run, or one for each module, by what the hook does."""
    for name, node in _nodes(config, roster):
        if is_by_module(node["_target_"]):
            roster.hook_names.append(name)
            for member in roster.members.values():
                roster.register_hook(member, name)
        else:
            hook = builder.build(node)
            hook.register(trainer, name)
            roster.hooks[name] = hook
    roster.check_changes()
    for member in roster.members.values():
        roster.check(member)


def _nodes(config: Config, roster: Roster) -> list[tuple[str, Config]]:
    """Every hook that the run or a module has, once, in their order."""
    found: dict[str, Any] = {}
    for group in (
        config["learning"],
        *(one.config.get("learning") for one in roster.members.values()),
        config["hooks"],
    ):
        for name, node in (group or {}).items():
            if node is not None:
                found.setdefault(name, node)
    return list(found.items())


def is_by_module(target: str) -> bool:
    """Whether a run of several modules has a hook of this kind for each of them."""
    found = resolve_target(target)
    said = getattr(found, "by_module", None)
    if said is not None:
        return bool(said)
    if OF_A_MODULE & read_signature(target).parameters.keys():
        return True
    point = getattr(found, "point", "")
    return not point or point in WITH_STEPS
