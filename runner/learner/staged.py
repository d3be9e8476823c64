"""The optimizations of a loss that moves its networks one after the other."""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from runner.learner.approximation import Approximation
from runner.learner.features import FeatureOptimization, feature_networks
from runner.learner.gradients import Clip
from runner.learner.module import ModuleConfig, ModuleLoss, SelfSupervisedLoss, loss_names
from runner.learner.optimization import Optimization
from runner.schedules import Constant, Piecewise, Schedule
from runner.spec import Stage
from runner.types import OptimizationOptions

OPTIONS = ("every", "lr", "clip")
WHOLE = "default"
"""The one stage of a loss that names none: all of its terms over all networks."""


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
    loss: Any, networks: Mapping[str, Approximation], config: ModuleConfig
) -> tuple[Optimization, ...]:
    """One optimization for each stage of ``loss``, in their order, and then one for each network of shared features.

    Options that say nothing (all null) may be of a stage that there is not.
    """
    shared, options = feature_networks(networks), config.optimizations
    stages = stages_of(loss, [name for name in networks if name not in shared])
    stages |= {name: Stage((), (name,), ()) for name in shared}
    _check_options(loss, options, stages)
    if delayed := [name for name in shared if (options.get(name) or {}).get("every")]:
        raise ValueError(f"learner.optimizations.{delayed[0]}.every: shared features move whenever a head has")
    _check_weights(loss, config.loss_weights)
    return tuple(_make(name, stage, networks, config, options.get(name) or {}, _followed(stage, loss))
                 for name, stage in stages.items())  # fmt: skip


def _check_options(loss: Any, options: Mapping[str, Mapping[Any, Any]], stages: Mapping[str, Stage]) -> None:
    for name, own in options.items():
        if strange := [option for option in own if option not in OPTIONS]:
            raise ValueError(f"learner.optimizations.{name}.{strange[0]}: there are {', '.join(OPTIONS)}")
    said = {name for name, own in options.items() if any(value is not None for value in own.values())}
    if unknown := sorted(said.difference(stages)):
        raise ValueError(
            f"learner.optimizations.{unknown[0]}: {type(loss).__name__} has no such optimization; "
            f"it has {', '.join(stages)}"
        )


def _check_weights(loss: Any, weights: Mapping[str, float]) -> None:
    """What the loss of a foreign module gives is known when it is called."""
    terms, is_foreign = loss_names(loss), isinstance(loss, ModuleLoss | SelfSupervisedLoss)
    if strange := [] if is_foreign else [term for term in weights if term not in terms]:
        raise ValueError(f"learner.loss_weights.{strange[0]}: the loss has no such term; it has {', '.join(terms)}")


def _followed(stage: Stage, loss: Any) -> tuple[str, ...]:
    if stage.targets is not None:
        return stage.targets
    return tuple(name for name in stage.networks if name in getattr(loss, "targets", ()))


def _make(
    name: str,
    stage: Stage,
    networks: Mapping[str, Approximation],
    config: ModuleConfig,
    options: OptimizationOptions,
    followed: Sequence[str],
) -> Optimization:
    optimizer = config.optimizer(_parameters(stage, networks))
    for group in optimizer.param_groups if options.get("lr") else ():
        group["lr"] = options["lr"]
    clip = config.clip if options.get("clip") is None else options["clip"]
    weights = {term: weight for term, weight in config.loss_weights.items() if not stage.terms or term in stage.terms}
    rate = config.scheduler if config.lr is None or options.get("lr") else config.lr  # the stage's own comes first
    features = feature_networks(networks).get(name)
    kind: Any = partial(Optimization, terms=stage.terms or None, loss_weights=weights)
    made: Optimization = (kind if features is None else partial(FeatureOptimization, features=features))(
        optimizer,
        name=name,
        every=_whole(name, options.get("every") or stage.every) * config.update_every,
        schedule=schedule_of(rate, optimizer),
        clip=None if clip is None else Clip(clip, config.clip_by),
        non_finite=config.non_finite,
        non_finite_limit=config.non_finite_limit,
        targets=[networks[network].target for network in followed],
    )
    made.set_lr(0)
    return made


def _parameters(stage: Stage, networks: Mapping[str, Approximation]) -> list[nn.Parameter]:
    """Those of its networks, each once, however many share it; without those of features that are moved apart."""
    apart = [one.model for name, one in feature_networks(networks).items() if name not in stage.networks]
    without = {id(parameter) for model in apart for parameter in model.parameters()}
    parameters = (parameter for name in stage.networks for parameter in networks[name].model.parameters())
    return [parameter for parameter in dict.fromkeys(parameters) if id(parameter) not in without]


def schedule_of(value: Any, optimizer: optim.Optimizer) -> Schedule | LRScheduler | None:
    """The schedule that a learning rate stands for: a number that stays, ``[[t, value], ...]``, or one as it is.

    A class of torch's schedulers, or any function of an optimizer alone, makes one for the ``optimizer``.
    """
    if isinstance(value, str | Mapping | bool):
        raise ValueError(f"a learning rate is a number or [[t, value], ...]; got {value!r}")
    if isinstance(value, int | float):
        if not 0 <= value < math.inf:
            raise ValueError(f"a learning rate of {value}: it must be >= 0, and finite")
        for group in optimizer.param_groups:
            group["lr"] = float(value)
        return Constant()
    if isinstance(value, list | tuple):
        return Piecewise(value)  # type: ignore[arg-type]
    if not _makes_one(value):
        return value
    made = value(optimizer)
    if not isinstance(made, LRScheduler):
        raise ValueError(f"a function of an optimizer has to make a torch scheduler; got a {type(made).__name__}")
    return made


def _makes_one(value: Any) -> bool:
    """Whether this is no schedule, a function of a learning rate and env steps, but makes a torch scheduler."""
    made_of = getattr(value, "func", value)
    if isinstance(made_of, type):
        return issubclass(made_of, LRScheduler)
    if value is None or isinstance(value, LRScheduler):
        return False
    try:
        inspect.signature(value).bind(0.1, 0)
    except TypeError:
        return True
    return False


def _whole(name: str, every: float) -> int:
    if every % 1:
        raise ValueError(f"learner.optimizations.{name}.every={every:g}: updates are whole")
    return int(every)
