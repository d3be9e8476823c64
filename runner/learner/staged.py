"""The optimizations of a loss that moves its networks one after the other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn, optim

from runner.learner.approximation import Approximation
from runner.learner.gradients import Clip, ClipBy, NonFinite
from runner.learner.optimization import Optimization
from runner.schedules import Schedule
from runner.spec import Stage
from runner.types import OptimizationOptions

WHOLE = "default"
"""The one stage of a loss that names none: all of its terms over all networks."""


class Rules(NamedTuple):
    """What all optimizations have in common, unless the options of one say otherwise.

    ``update_every`` counts the run's updates; ``every`` of a stage counts those that it leaves.
    """

    optimizer: Callable[[Sequence[nn.Parameter]], optim.Optimizer]
    scheduler: Schedule | None
    clip: float | None
    clip_by: ClipBy
    loss_weights: Mapping[str, float]
    update_every: int
    non_finite: NonFinite


def stages_of(loss: Any, networks: Sequence[str]) -> dict[str, Stage]:
    """The stages that a loss names, all of whose terms and networks there have to be; else one of everything."""
    stages = dict(getattr(loss, "stages", {}))
    if not stages:
        followed = tuple(name for name in networks if name in getattr(loss, "targets", ()))
        return {WHOLE: Stage((), tuple(networks), followed)}
    missing = [name for stage in stages.values() for name in stage.networks if name not in networks]
    if missing:
        raise ValueError(
            f"{type(loss).__name__} moves a network called {missing[0]!r}; there are {', '.join(networks)}"
        )
    return stages


def make_optimizations(
    loss: Any,
    networks: Mapping[str, Approximation],
    rules: Rules,
    options: Mapping[str, OptimizationOptions] | None = None,
) -> tuple[Optimization, ...]:
    """One optimization for each stage of ``loss``, in their order.

    Args:
        options: by the name of a stage; one that says nothing (all null) may be of a stage that there is not.
    """
    stages = stages_of(loss, list(networks))
    said = {name for name, own in (options or {}).items() if any(value is not None for value in own.values())}
    unknown = sorted(said.difference(stages))
    if unknown:
        raise ValueError(
            f"learner.optimizations.{unknown[0]}: {type(loss).__name__} has no such optimization; "
            f"it has {', '.join(stages)}"
        )
    terms = list(getattr(loss, "terms", ()))
    if getattr(loss, "stages", {}) and (strange := [term for term in rules.loss_weights if term not in terms]):
        raise ValueError(f"learner.loss_weights.{strange[0]}: the loss has no such term; it has {', '.join(terms)}")
    return tuple(_make(name, stage, networks, rules, (options or {}).get(name) or {}, _followed(stage, loss))
                 for name, stage in stages.items())  # fmt: skip


def _followed(stage: Stage, loss: Any) -> tuple[str, ...]:
    if stage.targets is not None:
        return stage.targets
    return tuple(name for name in stage.networks if name in getattr(loss, "targets", ()))


def _make(
    name: str,
    stage: Stage,
    networks: Mapping[str, Approximation],
    rules: Rules,
    options: OptimizationOptions,
    followed: Sequence[str],
) -> Optimization:
    parameters = (parameter for network in stage.networks for parameter in networks[network].model.parameters())
    optimizer = rules.optimizer(list(dict.fromkeys(parameters)))  # each once, however many networks share it
    for group in optimizer.param_groups if options.get("lr") else ():
        group["lr"] = options["lr"]
    clip = options.get("clip") or rules.clip
    weights = rules.loss_weights
    return Optimization(
        optimizer,
        name=name,
        terms=stage.terms or None,
        every=_whole(name, options.get("every") or stage.every) * rules.update_every,
        schedule=rules.scheduler,
        clip=Clip(clip, rules.clip_by) if clip else None,
        loss_weights={term: weights[term] for term in weights if not stage.terms or term in stage.terms},
        non_finite=rules.non_finite,
        targets=[networks[network].target for network in followed],
    )


def _whole(name: str, every: float) -> int:
    if every % 1:
        raise ValueError(f"learner.optimizations.{name}.every={every:g}: updates are whole")
    return int(every)
