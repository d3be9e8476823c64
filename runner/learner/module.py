"""What stands behind one module id: networks, a loss over them, and how they are optimized."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from runner.learner.approximation import Approximation
from runner.learner.features import as_asked
from runner.learner.gradients import ClipBy, NonFinite
from runner.learner.optimization import NON_FINITE_LIMIT, Optimization
from runner.learner.precision import Precision
from runner.schedules import Schedule
from runner.spec import HooklineError
from runner.types import OptimizationOptions

DEFAULT_MODULE = "default"
ALL_MODULES = "__all_modules__"
"""Under which metrics of all modules together are kept."""

Networks = Mapping[str, Callable[..., Any]]


class Loss(Protocol):
    """Ordered named terms; each maps (networks, batch, hyper-parameters) to ``loss_*`` and per-sample outputs.

    One that needs random numbers has ``draw(batch, generator)``, which gives those of an update, by their keys.
    """

    @property
    def terms(self) -> Mapping[str, Callable[[Networks, TensorDictBase, Mapping[str, Any]], TensorDictBase]]: ...

    @property
    def hyper_parameters(self) -> Mapping[str, Any]: ...


def loss_names(loss: Any) -> list[str]:
    """What can be weighted of a loss: its ``loss_*`` entries, which are called like its terms where it names none."""
    named: Any = getattr(loss, "losses", None) or getattr(loss, "terms", ())
    return list(named)


class ModuleLoss:
    """A ready loss module, ``loss_module(batch) -> {loss_*: ...}``, as a loss with one term."""

    def __init__(self) -> None:
        self.hyper_parameters: dict[str, Any] = {}
        self.terms: Mapping[str, Callable[..., TensorDictBase]] = _TermsOnDemand({"loss": self._call})

    @staticmethod
    def _call(networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, Any]) -> TensorDictBase:
        return as_losses(networks["loss_module"](batch))


class _TermsOnDemand(dict[str, Callable[..., TensorDictBase]]):
    """The one term of a ready module; asked for another, what the module gives without the other ``loss_*``."""

    def __missing__(self, term: str) -> Callable[..., TensorDictBase]:
        def call(networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, Any]) -> TensorDictBase:
            losses = self["loss"](networks, batch, hyper_parameters)
            if f"loss_{term}" not in losses.keys():
                raise HooklineError(f"the loss module gives no loss_{term}; it gives {', '.join(losses.keys())}")
            return losses.exclude(*(key for key in losses.keys() if key.startswith("loss") and key != f"loss_{term}"))

        return call


class SelfSupervisedLoss:
    """The loss that a network brings along, as its ``compute_self_supervised_loss(batch) -> {loss_*: ...}``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.hyper_parameters: dict[str, Any] = {}
        self.terms = {"self_supervised": self._call}

    def _call(self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, Any]) -> TensorDictBase:
        network: Any = networks[self._name]
        return as_losses(network.compute_self_supervised_loss(batch))

    @classmethod
    def among(cls, networks: Mapping[str, Approximation]) -> "SelfSupervisedLoss | None":
        """That of the first network that has one."""
        models = ((name, network.model) for name, network in networks.items())
        found = next((name for name, model in models if hasattr(model, "compute_self_supervised_loss")), None)
        return None if found is None else cls(found)


def as_losses(losses: Any) -> TensorDictBase:
    """What a loss module gives, as a TensorDict."""
    return losses if isinstance(losses, TensorDictBase) else TensorDict(dict(losses), batch_size=[])


class Module(NamedTuple):
    """What one module id stands for. ``optimizations`` are applied in their order; ``generator`` is the loss's own.

    ``loss`` may be ``None`` where a network brings its own, see :class:`SelfSupervisedLoss`.
    """

    networks: Mapping[str, Approximation]
    loss: Any
    optimizations: Sequence[Optimization] = ()
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class ModuleConfig:
    """How the networks of a module are optimized.

    ``update_every`` counts the module's updates; ``every`` of a stage counts those that it leaves.

    Args:
        optimizer: makes an optimizer from parameters.
        scheduler: learning rate over env steps, or a function that makes a torch scheduler from the optimizer.
        lr: instead of the optimizer's own: a number, or a schedule ``[[t, value], ...]`` over env steps.
        optimizations: what one of several does otherwise, by the name of the loss's stage.
    """

    optimizer: Callable[[Sequence[nn.Parameter]], optim.Optimizer]
    scheduler: Schedule | Callable[[optim.Optimizer], LRScheduler] | None = None
    clip: float | None = None
    clip_by: ClipBy = "global_norm"
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    update_every: int = 1
    non_finite: NonFinite = "raise"
    non_finite_limit: int | None = NON_FINITE_LIMIT
    lr: Any = None
    optimizations: Mapping[str, OptimizationOptions] = field(default_factory=dict)

    def override(self, overrides: Mapping[str, Any] | None) -> "ModuleConfig":
        """The same but for ``overrides``; a ``ValueError`` for what it does not have."""
        names = [one.name for one in fields(self)]
        for name in overrides or {}:
            if name not in names:
                guess = get_close_matches(name, names, 1)
                hint = f"did you mean {guess[0]}?" if guess else f"there are {', '.join(names)}"
                raise ValueError(f"config_overrides: a module has no {name}; {hint}")
        return replace(self, **(overrides or {}))


@dataclass(frozen=True)
class ModuleSpec:
    """How to build a module, as often as asked for.

    Args:
        networks: makes them.
        loss: over them, or a function without parameters that makes it; ``None`` where a network brings its own.
        config: how they are optimized.
        generator: of the noise of losses that need some; only those get it.
    """

    networks: Callable[[], Mapping[str, Approximation]]
    loss: Any
    config: ModuleConfig
    generator: torch.Generator | None = None

    def build(self) -> Module:
        loss = self.loss if self.loss is None or hasattr(self.loss, "terms") else self.loss()
        draws = callable(getattr(loss, "draw", None))
        return Module(dict(self.networks()), loss, (), self.generator if draws else None)


_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$')


def check_module_id(module_id: Any) -> None:
    """Raise ``ValueError`` for what cannot be a name of a folder, and so of a module."""
    if not isinstance(module_id, str) or not module_id or _FORBIDDEN.search(module_id) or module_id == ALL_MODULES:
        raise ValueError(
            f"{module_id!r} cannot be a module's id: it is a word without any of <>:\"/\\|?*, and does not end in a "
            "dot or a space"
        )


def check_selector(select: Callable[..., Any]) -> None:
    """Raise ``ValueError`` for a function that cannot be asked which modules are updated."""
    try:
        inspect.signature(select).bind("id", None)
    except TypeError as error:
        name = getattr(select, "__qualname__", type(select).__name__)
        raise ValueError(f"modules_to_train: {name} is called with (module_id, batch); {error}") from None
    except ValueError:  # Python knows no signature
        pass


def check_owners(modules: Mapping[str, Module]) -> None:
    """Refuse optimizations of one name in a module, and parameters or targets that two optimizations would move."""
    owners: dict[int, str] = {}
    named = [(f"{module_id}/{one.name}", one) for module_id, module in modules.items() for one in module.optimizations]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"each optimization of a module needs a name of its own; got {', '.join(names)}")
    for name, optimization in named:
        for part in (*optimization.parameters, *optimization.targets):
            owner = owners.setdefault(id(part), name)
            if owner != name:
                raise ValueError(f"{owner} and {name} would both move the same {type(part).__name__}")


def check_generators(modules: Mapping[str, Module]) -> None:
    """A loss that draws needs something to draw from, and what nobody draws from would be saved for nothing."""
    for module_id, module in modules.items():
        if callable(getattr(module.loss, "draw", None)) != (module.generator is not None):
            words = "draws no random numbers" if module.generator is not None else "draws random numbers"
            raise ValueError(f"{module_id}: {type(module.loss).__name__} {words}: give a generator to losses that do")


def all_networks(module: Module) -> list[nn.Module]:
    """The networks of a module and their targets, each once."""
    parts = [part for network in module.networks.values() for part in (network.model, network.target.model)]
    return list(dict.fromkeys(parts))


def callables(networks: Mapping[str, Approximation], precision: Precision) -> dict[str, Callable[..., Any]]:
    """What a loss sees: each network by its name, and its target by ``<name>_target``; in their precision."""
    seen: dict[str, Callable[..., Any]] = {}
    for name, network in networks.items():
        device = next((one.device for one in network.model.parameters()), torch.device("cpu"))
        seen[name] = precision.of(as_asked(network, networks), device)
        seen[f"{name}_target"] = precision.of(network.target, device)
    return seen
