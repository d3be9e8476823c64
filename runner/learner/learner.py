"""Many modules, their losses and their optimizations, moved in the right order."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn, optim

from runner.learner.approximation import Approximation
from runner.learner.compiled import UpdateCompiler
from runner.learner.optimization import Optimization
from runner.learner.tracing import GradientTracer, Recorded
from runner.spec import ConfigError, HooklineError, Progress, StateDict
from runner.types import Compile

DEFAULT_MODULE = "default"

Recorder = Callable[[TensorDictBase], Recorded | None]
Networks = Mapping[str, Callable[..., Any]]


class Loss(Protocol):
    """Ordered named terms; each maps (networks, batch, hyper-parameters) to ``loss_*`` and per-sample outputs.

    One that needs random numbers has ``draw(batch, generator)``, which gives those of an update, by their keys.
    """

    @property
    def terms(self) -> Mapping[str, Callable[[Networks, TensorDictBase, Mapping[str, Any]], TensorDictBase]]: ...

    @property
    def hyper_parameters(self) -> Mapping[str, Any]: ...


class ModuleLoss:
    """A ready loss module, ``loss_module(batch) -> {loss_*: ...}``, as a loss with one term."""

    def __init__(self) -> None:
        self.hyper_parameters: dict[str, Any] = {}
        self.terms: Mapping[str, Callable[..., TensorDictBase]] = _TermsOnDemand({"loss": self._call})

    @staticmethod
    def _call(networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, Any]) -> TensorDictBase:
        losses = networks["loss_module"](batch)
        return losses if isinstance(losses, TensorDictBase) else TensorDict(dict(losses), batch_size=[])


class _TermsOnDemand(dict[str, Callable[..., TensorDictBase]]):
    """The one term of a ready module; asked for another, what the module gives without the other ``loss_*``."""

    def __missing__(self, term: str) -> Callable[..., TensorDictBase]:
        def call(networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, Any]) -> TensorDictBase:
            losses = self["loss"](networks, batch, hyper_parameters)
            if f"loss_{term}" not in losses.keys():
                raise HooklineError(f"the loss module gives no loss_{term}; it gives {', '.join(losses.keys())}")
            return losses.exclude(*(key for key in losses.keys() if key.startswith("loss") and key != f"loss_{term}"))

        return call


class Module(NamedTuple):
    """What one module id stands for. ``optimizations`` are applied in their order; ``generator`` is the loss's own."""

    networks: Mapping[str, Approximation]
    loss: Loss
    optimizations: Sequence[Optimization]
    generator: torch.Generator | None = None


class Learner:
    """Turns sub-batches into new weights; a single agent is a learner with one module, ``default``.

    The terms of an optimization are evaluated when its turn comes, on current weights: the first due one in
    :meth:`compute_losses`, before anything has moved, the others within :meth:`step`.

    Args:
        modules: by id. With several, a batch is keyed by module id.
        progress: the run's counters, which say what is due and where schedules are.
        compile: how updates by ``stackable`` losses are computed; see :mod:`runner.learner.tracing` and
            :mod:`runner.learner.compiled`. A subclass with steps of its own for gradients does them one by one.
    """

    def __init__(
        self, modules: Mapping[str, Module], progress: Progress | None = None, compile: Compile = "trace"
    ) -> None:
        self.modules = dict(modules)
        _check_owners(self.modules)
        _check_generators(self.modules)
        self.progress = progress or Progress()
        self._callables = {module_id: _callables(module.networks) for module_id, module in self.modules.items()}
        self._recorders: dict[Optimization, list[Recorder]] = {}
        self._recorded: dict[Optimization, Recorded] = {}
        for module_id, module in self.modules.items():
            for optimization in module.optimizations:
                self._recorders[optimization] = self._make_recorders(compile, module_id, optimization)

    def _make_recorders(self, compile: Compile, module_id: str, optimization: Optimization) -> list[Recorder]:
        """What may compute the updates in place of autograd, best first; only losses that are pure functions can be."""
        loss = self.modules[module_id].loss
        if compile == "none" or self._overrides("compute_gradients") or not getattr(loss, "stackable", False):
            return []
        evaluate, networks = partial(self._outputs, module_id, optimization), _all_networks(self.modules[module_id])
        tracer = GradientTracer(evaluate, networks, optimization, loss.hyper_parameters)
        if compile == "trace" or self._overrides("postprocess_gradients", "apply_gradients"):
            return [tracer]
        return [UpdateCompiler(evaluate, networks, optimization, loss.hyper_parameters), tracer]

    def _overrides(self, *methods: str) -> bool:
        return any(getattr(type(self), method) is not getattr(Learner, method) for method in methods)

    @classmethod
    def from_loss_module(
        cls,
        loss_module: Callable[..., Any],
        optimizer: optim.Optimizer | Optimization | None,
        progress: Progress | None = None,
    ) -> "Learner":
        """A learner for a ready ``loss_module(batch) -> {loss_*: ...}`` and a torch optimizer over its parameters.

        Without an optimizer, :meth:`add` says what moves them; the loss has to be an ``nn.Module`` then.
        """
        if optimizer is None:
            if not isinstance(loss_module, nn.Module):
                raise ValueError("a loss_module that is no nn.Module goes together with its optimizer")
            return cls(
                {DEFAULT_MODULE: Module({"loss_module": Approximation(loss_module)}, ModuleLoss(), ())}, progress
            )
        optimization = optimizer if isinstance(optimizer, Optimization) else Optimization(optimizer)
        model = loss_module if isinstance(loss_module, nn.Module) else _Callable(loss_module, optimization.parameters)
        module = Module({"loss_module": Approximation(model)}, ModuleLoss(), (optimization,))
        return cls({DEFAULT_MODULE: module}, progress)

    def add(
        self, optimizer: optim.Optimizer | Optimization, name: str, terms: Sequence[str] | None = None, every: int = 1
    ) -> Optimization:
        """Let one more optimizer move the only module, after those there are; ``every`` counts updates."""
        if isinstance(optimizer, Optimization):
            own = optimizer
        else:
            own = Optimization(optimizer, name=name, terms=terms, every=every)
        (module_id,) = self.modules
        module = self.modules[module_id]
        modules = {module_id: module._replace(optimizations=(*module.optimizations, own))}
        _check_owners(modules)
        self.modules = modules
        self._recorders[own] = []  # computed by autograd
        return own

    def remove(self, optimization: Optimization) -> None:
        """Let an optimizer move nothing any more."""
        for module_id, module in self.modules.items():
            left = tuple(one for one in module.optimizations if one is not optimization)
            self.modules[module_id] = module._replace(optimizations=left)

    def optimizations(self) -> list[Optimization]:
        """Those of all modules, in their order."""
        return [one for module in self.modules.values() for one in module.optimizations]

    def follower_of(self, network: nn.Module) -> str | None:
        """The optimization whose targets follow ``network``, if there is one."""
        targets = ((one.name, target) for one in self.optimizations() for target in one.targets)
        return next((name for name, target in targets if getattr(target, "network", None) is network), None)

    def compute_losses(self, batch: TensorDictBase) -> TensorDictBase:
        """The losses of each module's first due optimization; outputs per sample (``td_error``) go into ``batch``."""
        losses = {module_id: self._first_losses(module_id, batch) for module_id in self.modules}
        return next(iter(losses.values())) if len(losses) == 1 else TensorDict(losses, batch_size=[])

    def _first_losses(self, module_id: str, batch: TensorDictBase) -> TensorDictBase:
        due = self._due(module_id)
        if not due:
            return TensorDict(batch_size=[])
        data = self._data(module_id, batch)
        self._begin(self.modules[module_id], data)
        return self._evaluate(module_id, due[0], data)

    def _begin(self, module: Module, batch: TensorDictBase) -> None:
        """Draw the loss's noise for this update, and take out of ``batch`` what stages of an earlier one left there."""
        if len(module.optimizations) > 1:
            for key in set(getattr(module.loss, "outputs", ())).intersection(batch.keys()):
                batch.del_(key)
        if module.generator is not None:
            for key, noise in module.loss.draw(batch, module.generator).items():  # type: ignore[attr-defined]
                batch.set(key, noise)

    def step(self, losses: TensorDictBase, batch: TensorDictBase, only: Optimization | None = None) -> dict[str, Any]:
        """Apply every due optimization, the first to ``losses``, and return metrics (tensors, not yet read).

        Who applies each with a call of its own (``only``) keeps their order.
        """
        metrics: dict[str, Any] = {}
        for module_id in self.modules:
            own = losses if len(self.modules) == 1 else losses.get(module_id)
            prefix = self._prefix(module_id)
            for index, optimization in enumerate(self._due(module_id)):
                if only is not None and optimization is not only:
                    continue
                if index:
                    own = self._evaluate(module_id, optimization, self._data(module_id, batch))
                for name, value in self._update(optimization, own).items():
                    metrics[prefix + name] = value
        return metrics

    def _prefix(self, module_id: str) -> str:
        """What the names of a module's metrics begin with: nothing, as long as there is only one module."""
        return "" if len(self.modules) == 1 else f"{module_id}/"

    def _update(self, optimization: Optimization, losses: TensorDictBase) -> dict[str, Tensor]:
        metrics = _loss_metrics(losses)
        recorded = self._recorded.get(optimization)
        if recorded is not None and recorded.gradients is None and recorded.is_of(losses):
            recorded.apply()
            optimization.follow()
            return {**metrics, **self._recorded.pop(optimization).metrics}
        gradients = self.compute_gradients(optimization, losses)
        metrics.update(self.postprocess_gradients(optimization, gradients))
        self.apply_gradients(optimization, gradients)
        return metrics

    def compute_gradients(self, optimization: Optimization, losses: TensorDictBase) -> list[Tensor | None]:
        """Gradients for the optimization's own parameters; override to change them at their source."""
        recorded = self._recorded.pop(optimization, None)
        if recorded is not None and recorded.gradients is not None and recorded.is_of(losses):
            return recorded.gradients
        if recorded is not None and not any(loss.requires_grad for loss in losses.values()):
            raise HooklineError(
                f"the losses of optimization {optimization.name!r} were changed after they were computed, and recorded "
                "ones have no graph that could tell their gradients: use compile=none"
            )
        return optimization.compute_gradients(losses)

    def postprocess_gradients(self, optimization: Optimization, gradients: list[Tensor | None]) -> dict[str, Tensor]:
        """Non-finite policy and clipping, in place; override to add to it."""
        return optimization.postprocess_gradients(gradients)

    def apply_gradients(self, optimization: Optimization, gradients: Sequence[Tensor | None]) -> None:
        """Step the optimizer, its schedule and its targets."""
        optimization.apply_gradients(gradients, self.progress.env_steps)

    def is_due(self) -> bool:
        """Whether any optimization is due in the update that is under way."""
        return any(self._due(module_id) for module_id in self.modules)

    def _due(self, module_id: str) -> list[Optimization]:
        updates = self.progress.updates
        return [one for one in self.modules[module_id].optimizations if one.is_due(updates)]

    def _data(self, module_id: str, batch: TensorDictBase) -> TensorDictBase:
        return batch if len(self.modules) == 1 else batch.get(module_id)

    def _evaluate(self, module_id: str, optimization: Optimization, batch: TensorDictBase) -> TensorDictBase:
        optimization.set_lr(self.progress.env_steps)
        answers = (recorder(batch) for recorder in self._recorders[optimization])
        recorded = next((answer for answer in answers if answer is not None), None)
        if recorded is None:
            losses = self._outputs(module_id, optimization, batch)
        else:
            losses, self._recorded[optimization] = recorded.losses, recorded
        for key, value in losses.items():
            if value.ndim and not key.startswith("loss"):
                batch.set(key, value)
        return losses

    def _outputs(self, module_id: str, optimization: Optimization, batch: TensorDictBase) -> TensorDictBase:
        """Losses and per-sample outputs of all terms that the optimization minimizes."""
        loss, networks = self.modules[module_id].loss, self._callables[module_id]
        terms = loss.terms if optimization.terms is None else optimization.terms
        missing = [key for key in getattr(loss, "inputs", ()) if batch.get(key, None) is None]
        if missing:
            there = sorted(map(str, batch.keys(include_nested=True, leaves_only=True)))
            words = f"{type(loss).__name__} reads {missing[0]}, and the sub-batch has {', '.join(there)}"
            raise ConfigError(f"{words}: another source, exploration or learning hook gives it")
        outputs = [loss.terms[term](networks, batch, loss.hyper_parameters) for term in terms]
        losses = outputs[0]
        for more in outputs[1:]:
            losses.update(more)
        return losses

    def row_metrics(self) -> dict[str, float]:
        """What is read once for each metric row: learning rates."""
        return {
            f"{self._prefix(module_id)}lr/{one.name}": one.lr_at(self.progress.env_steps)
            for module_id, module in self.modules.items()
            for one in module.optimizations
        }

    def check_finite(self) -> None:
        """Raise ``NonFiniteError`` if weights are no longer finite."""
        for optimization in self.optimizations():
            optimization.check_finite()

    def get_state(self) -> StateDict:
        """Everything the learner has learnt; the same as :meth:`state_dict`."""
        return self.state_dict()

    def set_state(self, state: StateDict) -> None:
        self.load_state_dict(state)

    def state_dict(self) -> StateDict:
        return {
            module_id: {
                "networks": {name: network.state_dict() for name, network in module.networks.items()},
                "optimizations": {one.name: one.state_dict() for one in module.optimizations},
                **({"noise": module.generator.get_state()} if module.generator is not None else {}),
            }
            for module_id, module in self.modules.items()
        }

    def load_state_dict(self, state: StateDict) -> None:
        for module_id, module in self.modules.items():
            for name, network in module.networks.items():
                network.load_state_dict(state[module_id]["networks"][name])
            for one in module.optimizations:
                one.load_state_dict(state[module_id]["optimizations"][one.name])
            if module.generator is not None:
                module.generator.set_state(state[module_id]["noise"])


class _Callable(nn.Module):
    """Lets a plain function stand where a module is expected; what is saved of it are the parameters it moves."""

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.moved = nn.ParameterList(parameters)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def _check_owners(modules: Mapping[str, Module]) -> None:
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


def _check_generators(modules: Mapping[str, Module]) -> None:
    """A loss that draws needs something to draw from, and what nobody draws from would be saved for nothing."""
    for module_id, module in modules.items():
        if callable(getattr(module.loss, "draw", None)) != (module.generator is not None):
            words = "draws no random numbers" if module.generator is not None else "draws random numbers"
            raise ValueError(f"{module_id}: {type(module.loss).__name__} {words}: give a generator to losses that do")


def _loss_metrics(losses: TensorDictBase) -> dict[str, Tensor]:
    """Losses by ``loss/<term>``, and what else is one number for the whole batch by ``train/<key>``."""
    metrics: dict[str, Any] = {}
    for key, value in losses.items():
        if key.startswith("loss_"):
            metrics[f"loss/{key[5:]}"] = value.detach()
        elif not value.ndim:
            metrics[f"train/{key}"] = value.detach()
    return metrics


def _all_networks(module: Module) -> list[nn.Module]:
    """The networks of a module and their targets, each once."""
    parts = [part for network in module.networks.values() for part in (network.model, network.target.model)]
    return list(dict.fromkeys(parts))


def _callables(networks: Mapping[str, Approximation]) -> dict[str, Callable[..., Any]]:
    """What a loss sees: each network by its name, and its target by ``<name>_target``."""
    seen: dict[str, Callable[..., Any]] = {}
    for name, network in networks.items():
        seen[name] = network.model
        seen[f"{name}_target"] = network.target
    return seen
