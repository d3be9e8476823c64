"""From a batch to new weights: losses, gradients and steps of all modules, in the right order."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, optim

from runner.learner.compiled import UpdateCompiler
from runner.learner.features import feature_networks
from runner.learner.module import Module, all_networks, callables
from runner.learner.optimization import NonFiniteError, Optimization
from runner.learner.precision import Precision
from runner.learner.registry import Registry
from runner.learner.state import ModuleState
from runner.learner.tracing import GradientTracer, Recorded
from runner.spec import ConfigError, HooklineError, Progress
from runner.types import Compile, PrecisionName

Recorder = Callable[[TensorDictBase], Recorded | None]
Select = Sequence[str] | Callable[[str, TensorDictBase], bool] | None
"""Which modules are updated: all, those named, or those that a function of id and batch says."""


class Pipeline(Registry):
    """The terms of an optimization are evaluated when its turn comes, on current weights: the first due one in
    :meth:`compute_losses`, before anything has moved, the others within :meth:`step`.
    """

    def __init__(
        self, progress: Progress | None, compile: Compile, modules_to_train: Select, precision: PrecisionName = "fp32"
    ) -> None:
        super().__init__()
        self.precision = Precision(precision)
        self._finite_at: int | None = None
        self.progress = progress or Progress()
        self.compile, self.modules_to_train = compile, modules_to_train
        self.is_built = self.is_keyed = False
        self._own: dict[str, ModuleState] = {}
        self._chosen: tuple[str, ...] | None = None
        self._updated: tuple[str, ...] = ()
        self._has_stepped = False
        self._callables: dict[str, Mapping[str, Callable[..., Any]]] = {}
        self._module_ids: dict[Optimization, str] = {}
        self._recorders: dict[Optimization, list[Recorder]] = {}
        self._recorded: dict[Optimization, Recorded] = {}

    def should_module_be_updated(self, module_id: str, batch: TensorDictBase | None = None) -> bool:
        """Whether ``modules_to_train`` says so; ``batch`` is that of all modules."""
        select = self.modules_to_train
        if select is None:
            return True
        if not callable(select):
            return module_id in select
        answer = select(module_id, batch)  # type: ignore[arg-type]
        if answer not in (True, False):
            raise ValueError(f"modules_to_train: the function has to say True or False; it said {answer!r}")
        return bool(answer)

    def register(self, module_id: str, optimization: Optimization) -> None:
        super().register(module_id, optimization)
        self._callables.setdefault(module_id, callables(self.modules[module_id].networks, self.precision))
        optimization.scaler = self._own[module_id].scaler
        self._module_ids[optimization] = module_id
        self._recorders[optimization] = self._make_recorders(module_id, optimization)

    def _make_recorders(self, module_id: str, optimization: Optimization) -> list[Recorder]:
        """What may compute the updates in place of autograd, best first; only losses that are pure functions can be."""
        loss = self.modules[module_id].loss
        is_own = self._overrides("compute_gradients", "compute_loss_for_module")
        is_pure = getattr(loss, "stackable", False) and not feature_networks(self.modules[module_id].networks)
        if self.compile == "none" or is_own or not is_pure:
            return []
        evaluate, networks = partial(self._outputs, module_id, optimization), all_networks(self.modules[module_id])
        tracer = GradientTracer(evaluate, networks, optimization, loss.hyper_parameters)
        steps = ("postprocess_gradients", "postprocess_gradients_for_module", "apply_gradients")
        if self.compile == "trace" or self._overrides(*steps):
            return [tracer]
        return [UpdateCompiler(evaluate, networks, optimization, loss.hyper_parameters), tracer]

    def _overrides(self, *methods: str, of: type | None = None) -> bool:
        return any(getattr(type(self), method) is not getattr(of or Pipeline, method) for method in methods)

    def add(
        self, optimizer: optim.Optimizer | Optimization, name: str, terms: Sequence[str] | None = None, every: int = 1
    ) -> Optimization:
        """Let one more optimizer move the only module, after those there are; ``every`` counts updates."""
        if isinstance(optimizer, Optimization):
            own = optimizer
        else:
            own = Optimization(optimizer, name=name, terms=terms, every=every)
        if len(self.modules) != 1:
            raise ConfigError(f"one more optimizer for which of {', '.join(self.modules)}? register_optimizer says it")
        (module_id,) = self.modules
        self.register(module_id, own)
        self._recorders[own] = []  # computed by autograd
        return own

    def remove(self, optimization: Optimization) -> None:
        """Let an optimizer move nothing any more."""
        for module_id, module in self.modules.items():
            left = tuple(one for one in module.optimizations if one is not optimization)
            self.modules[module_id] = module._replace(optimizations=left)
        self._forget_optimization(optimization)

    def _forget_optimization(self, optimization: Optimization) -> None:
        kept: tuple[dict[Optimization, Any], ...] = (self._module_ids, self._recorders, self._recorded)
        for one in kept:
            one.pop(optimization, None)

    def select_modules(self, batch: TensorDictBase) -> tuple[str, ...]:
        """Which modules of ``batch``, that of all modules, are to be updated; the next update asks nobody else."""
        self._chosen = tuple(one for one in self._in(batch) if self.should_module_be_updated(one, batch))
        return self._chosen

    def compute_losses(self, batch: TensorDictBase) -> TensorDictBase:
        """The losses of each module's first due optimization; outputs per sample (``td_error``) go into ``batch``.

        Whoever has selected modules before may leave the others out of ``batch``.
        """
        self._check_is_built()
        self._end_update()
        selected = self.select_modules(batch) if self._chosen is None else self._chosen
        self._chosen = None
        self._updated = tuple(one for one in self._in(batch) if one in selected)
        losses = {module_id: self._first_losses(module_id, batch) for module_id in self._updated}
        if self.is_keyed:
            return TensorDict(losses, batch_size=[])
        return next(iter(losses.values())) if losses else TensorDict(batch_size=[])

    def _end_update(self) -> None:
        """Count the update that was under way, if it moved anything."""
        for module_id in self._updated if self._has_stepped else ():
            self._own[module_id].updates += 1
        self._has_stepped = False

    def _in(self, batch: TensorDictBase) -> list[str]:
        """The modules that a batch is for; a ``ValueError`` for parts of modules that there are not."""
        if not self.is_keyed:
            return list(self.modules)
        self._check_known(batch.keys())
        return [module_id for module_id in self.modules if module_id in batch.keys()]

    def _check_known(self, parts: Iterable[Any]) -> None:
        if unknown := [str(one) for one in parts if one not in self.modules]:
            there = ", ".join(self.modules)
            raise ValueError(f"the batch has parts for {', '.join(unknown)}, which are no modules; there are {there}")

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
            for key, noise in module.loss.draw(batch, module.generator).items():
                batch.set(key, noise)

    def step(self, losses: TensorDictBase, batch: TensorDictBase, only: Optimization | None = None) -> dict[str, Any]:
        """Apply every due optimization, the first to ``losses``, and return metrics (tensors, not yet read).

        Who applies each with a call of its own (``only``) keeps their order.
        """
        self._check_is_built()
        metrics: dict[str, Any] = {}
        self._has_stepped = True
        for module_id in self._updated:
            prefix = self._prefix(module_id)
            try:
                own = self._step_module(module_id, losses, batch, only)
            except NonFiniteError as error:
                raise NonFiniteError(f"update {self.progress.updates}, module {module_id!r}, {error}") from None
            for name, value in own.items():
                metrics[prefix + name] = value
        return metrics

    def _step_module(
        self, module_id: str, losses: TensorDictBase, batch: TensorDictBase, only: Optimization | None = None
    ) -> dict[str, Tensor]:
        own, metrics = losses.get(module_id) if self.is_keyed else losses, {}
        due, scaler = self._due(module_id), self._own[module_id].scaler
        for index, optimization in enumerate(due):
            if only is not None and optimization is not only:
                continue
            if index:
                own = self._evaluate(module_id, optimization, self._data(module_id, batch))
            metrics.update(self._update(optimization, own))
        if scaler is not None and due and only in (None, due[-1]):
            scaler.update()
        return metrics

    def _prefix(self, module_id: str) -> str:
        """What the names of a module's metrics begin with: nothing where batches are not keyed by module."""
        return f"{module_id}/" if self.is_keyed else ""

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
        """What happens to gradients before they are applied, in place; override this or the next to add to it."""
        return self.postprocess_gradients_for_module(self._module_ids[optimization], optimization, gradients)

    def postprocess_gradients_for_module(
        self, module_id: str, optimization: Optimization, gradients: list[Tensor | None]
    ) -> dict[str, Tensor]:
        """Non-finite policy and clipping."""
        return optimization.postprocess_gradients(gradients)

    def apply_gradients(self, optimization: Optimization, gradients: Sequence[Tensor | None]) -> None:
        """Step the optimizer, its schedule and its targets."""
        optimization.apply_gradients(gradients, self.progress.env_steps)

    def is_due(self, module_id: str | None = None) -> bool:
        """Whether any optimization, of one module or of all, is due in the update that is under way."""
        return any(self._due(one) for one in self.modules if module_id in (None, one))

    def _due(self, module_id: str) -> list[Optimization]:
        """A module counts its own updates, so that no other has a say in which are due."""
        updates = self._own[module_id].updates
        return [one for one in self.modules[module_id].optimizations if one.is_due(updates)]

    def _data(self, module_id: str, batch: TensorDictBase) -> TensorDictBase:
        return batch.get(module_id) if self.is_keyed else batch

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
        loss = self.modules[module_id].loss
        missing = [key for key in getattr(loss, "inputs", ()) if batch.get(key, None) is None]
        if missing:
            there = sorted(map(str, batch.keys(include_nested=True, leaves_only=True)))
            words = f"{type(loss).__name__} reads {missing[0]}, and the sub-batch has {', '.join(there)}"
            raise ConfigError(f"{words}: another source, exploration or learning hook gives it")
        terms = loss.terms if optimization.terms is None else optimization.terms
        return self.compute_loss_for_module(module_id, list(terms), batch)

    def compute_loss_for_module(self, module_id: str, terms: Sequence[str], batch: TensorDictBase) -> TensorDictBase:
        """``loss_*`` and per-sample outputs of these terms of a module's loss; override to add to it."""
        loss, networks = self.modules[module_id].loss, self._callables[module_id]
        outputs = [loss.terms[term](networks, batch, loss.hyper_parameters) for term in terms]
        losses: TensorDictBase = outputs[0] if outputs else TensorDict(batch_size=[])
        for more in outputs[1:]:
            losses.update(more)
        return losses

    def row_metrics(self) -> dict[str, float]:
        """What is read once for each metric row, of all modules."""
        return {
            f"{self._prefix(module_id)}{name}": value
            for module_id in self.modules
            for name, value in self._row_metrics(module_id).items()
        }

    def _row_metrics(self, module_id: str) -> dict[str, float]:
        """Learning rates, how many updates were skipped, the loss scale."""
        metrics: dict[str, float] = {}
        for one in self.modules[module_id].optimizations:
            metrics |= {f"lr/{one.name}": one.lr_at(self.progress.env_steps), **one.row_metrics()}
        scaler = self._own[module_id].scaler
        return metrics if scaler is None else {**metrics, "train/loss_scale": float(scaler.scale)}

    def check_finite(self) -> None:
        """Raise ``NonFiniteError`` if weights are no longer finite."""
        updates = self.progress.updates
        for module_id, module in self.modules.items():
            for optimization in module.optimizations:
                try:
                    optimization.check_finite()
                except NonFiniteError as error:
                    last = "" if self._finite_at is None else f" (finite after {self._finite_at})"
                    raise NonFiniteError(f"after update {updates}{last}, module {module_id!r}, {error}") from None
        self._finite_at = updates

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        parameters = (one for module in self.modules.values() for one in self.get_parameters(module))
        first = next(parameters, None)
        return torch.device("cpu") if first is None else first.device

    def _check_is_built(self) -> None:
        if not self.is_built:
            raise ValueError("call build() first: this learner has neither modules nor optimizers yet")


def _loss_metrics(losses: TensorDictBase) -> dict[str, Tensor]:
    """Losses by ``loss/<term>``, and what else is one number for the whole batch by ``train/<key>``."""
    metrics: dict[str, Any] = {}
    for key, value in losses.items():
        if key.startswith("loss_"):
            metrics[f"loss/{key[5:]}"] = value.detach()
        elif not value.ndim:
            metrics[f"train/{key}"] = value.detach()
    return metrics
