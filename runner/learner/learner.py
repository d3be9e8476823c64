"""Many modules and their optimizers, alone or within a Trainer: built, updated, joined by others, saved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn, optim

from runner.learner.approximation import Approximation
from runner.learner.connectors import EpisodesToBatch
from runner.learner.module import (
    ALL_MODULES,
    DEFAULT_MODULE,
    Module,
    ModuleLoss,
    ModuleSpec,
    SelfSupervisedLoss,
    check_generators,
    check_module_id,
    check_selector,
)
from runner.learner.optimization import Optimization
from runner.learner.pipeline import Select
from runner.learner.state import (
    BY_FUNCTION,
    COMPONENTS,
    METRICS,
    OPTIMIZER,
    RL_MODULE,
    SELECTED,
    ModuleState,
    Names,
    check_modules,
    check_names,
    copied,
    is_wanted,
    load_networks,
    load_optimizations,
    networks_state,
    optimizations_state,
)
from runner.learner.updates import Updates
from runner.seeding import stream_seed
from runner.spec import CheckpointError, ConfigError, Progress, StateDict
from runner.types import Compile, PrecisionName


class Learner(Updates):
    """Turns batches into new weights; a single agent is a learner with one module, ``default``.

    Args:
        modules: by id, or the only one; ready ones, or how to build them. With several, a batch is keyed by module id.
        progress: the run's counters, which say what is due and where schedules are.
        compile: how updates by ``stackable`` losses are computed; see :mod:`runner.learner.tracing` and
            :mod:`runner.learner.compiled`. A subclass with steps of its own for gradients does them one by one.
        modules_to_train: those that are updated: ``None`` for all, ids, or a function of id and batch.
        connectors: make batches of episodes.
        shuffling: its seed is what minibatches are shuffled by, those of each module by themselves.
        precision: in which updates call networks; see :mod:`runner.learner.precision`.
    """

    def __init__(
        self,
        modules: Mapping[str, Module | ModuleSpec] | Module | ModuleSpec,
        progress: Progress | None = None,
        compile: Compile = "trace",
        modules_to_train: Select = None,
        connectors: EpisodesToBatch | None = None,
        shuffling: torch.Generator | None = None,
        precision: PrecisionName = "fp32",
    ) -> None:
        self._own_progress = Progress()
        super().__init__(progress or self._own_progress, compile, modules_to_train, connectors, shuffling, precision)
        self._given = dict(modules) if isinstance(modules, Mapping) else {DEFAULT_MODULE: modules}

    def build(self) -> "Learner":
        """Make the modules and their optimizers; whoever calls it again gets what there is."""
        if self.is_built:
            return self
        if self.precision.name == "fp16" and self.compile == "update":
            raise ConfigError("learner.precision=fp16 has no scale that stays: use compile=trace, not update")
        if self.compile not in get_args(Compile):
            raise ValueError(f"no way to compile called {self.compile!r}: there are {', '.join(get_args(Compile))}")
        self.is_keyed = len(self._given) > 1
        try:
            for module_id, given in self._given.items():
                check_module_id(module_id)
                self._insert(module_id, given)
            check_generators(self.modules)
            self._check_selection(self.modules_to_train)
            self.is_built = True
            self.configure_optimizers()
        except BaseException:
            self.is_built = False
            for module_id in list(self.modules):
                self._forget(module_id)
            raise
        self._parameter_counts = count_parameters(self.modules)
        return self

    def _insert(self, module_id: str, given: Module | ModuleSpec) -> None:
        if isinstance(given, ModuleSpec):
            self.configs[module_id] = given.config
        module = given.build() if isinstance(given, ModuleSpec) else given
        loss = module.loss if module.loss is not None else SelfSupervisedLoss.among(module.networks)
        if loss is None:
            raise ValueError(f"module {module_id!r} has no loss, and none of its networks brings one")
        self.modules[module_id] = module._replace(loss=loss, optimizations=())
        seed = stream_seed(self.shuffling.initial_seed(), "shuffling", module_id)
        self._own[module_id] = ModuleState(torch.Generator().manual_seed(seed), self.precision.make_scaler())
        for optimization in module.optimizations:
            self.register(module_id, optimization)

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
            return cls(Module({"loss_module": Approximation(loss_module)}, ModuleLoss()), progress).build()
        optimization = optimizer if isinstance(optimizer, Optimization) else Optimization(optimizer)
        model = loss_module if isinstance(loss_module, nn.Module) else _Callable(loss_module, optimization.parameters)
        module = Module({"loss_module": Approximation(model)}, ModuleLoss(), (optimization,))
        return cls(module, progress).build()

    @property
    def module(self) -> dict[str, Module]:
        """All modules by id; changes to the dict itself have no effect."""
        self._check_is_built()
        return dict(self.modules)

    @property
    def distributed(self) -> bool:
        """Whether there are learners in other processes, too."""
        return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1

    def apply(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What ``function(learner, ...)`` gives."""
        return function(self, *arguments, **options)

    def add_module(
        self,
        *,
        module_id: str,
        module_spec: ModuleSpec | Module,
        config_overrides: Mapping[str, Any] | None = None,
        new_should_module_be_updated: Select = None,
    ) -> dict[str, Module]:
        """Let one more module learn from now on, and return all; nothing of the others changes.

        Args:
            config_overrides: what of the configuration in ``module_spec`` is otherwise.
            new_should_module_be_updated: takes the place of ``modules_to_train``.
        """
        self._check_is_built()
        check_module_id(module_id)
        if module_id in self.modules:
            raise ValueError(f"there is a module {module_id!r} already: remove it before another one takes its name")
        if config_overrides and not isinstance(module_spec, ModuleSpec):
            raise ValueError("config_overrides go with a ModuleSpec; a ready Module has its optimizations")
        if isinstance(module_spec, ModuleSpec):
            config = module_spec.config.override(config_overrides)
            module_spec = ModuleSpec(module_spec.networks, module_spec.loss, config, module_spec.generator)
        selected = self.modules_to_train
        try:
            self._insert(module_id, module_spec)
            check_generators(self.modules)
            self._select(new_should_module_be_updated)
            if module_id in self.configs and self.rl_module_is_compatible(self.modules[module_id]):
                self.configure_optimizers_for_module(module_id, self.configs[module_id])
        except BaseException:
            self._forget(module_id)
            self.modules_to_train = selected
            raise
        self.is_keyed = True
        self._parameter_counts = count_parameters(self.modules)
        return self.module

    def remove_module(self, module_id: str, *, new_should_module_be_updated: Select = None) -> dict[str, Module]:
        """Let a module go with all that belongs to it, and return the others; nothing of those changes."""
        self._check_is_built()
        if module_id not in self.modules:
            raise ValueError(f"there is no module {module_id!r}; there are {', '.join(self.modules)}")
        left = [one for one in self.modules if one != module_id]
        self._check_selection(new_should_module_be_updated, left)
        if not callable(self.modules_to_train) and self.modules_to_train is not None:
            self.modules_to_train = [one for one in self.modules_to_train if one != module_id]
        self._forget(module_id)
        self._select(new_should_module_be_updated)
        self.is_keyed = True
        self._parameter_counts = count_parameters(self.modules)
        return self.module

    def _forget(self, module_id: str) -> None:
        for optimization in self._of(module_id):
            self._forget_optimization(optimization)
        for kept in (self.modules, self.configs, self._callables, self._own):
            kept.pop(module_id, None)  # type: ignore[attr-defined]
        self.precision.forget()
        self._updated = tuple(one for one in self._updated if one != module_id)
        self.metrics.remove(module_id)

    def _select(self, select: Select) -> None:
        if select is not None:
            self._check_selection(select)
            self.modules_to_train = select

    def _check_selection(self, select: Select, modules: Iterable[str] | None = None) -> None:
        there = list(self.modules if modules is None else modules)
        if callable(select):
            check_selector(select)
        strange = [] if select is None or callable(select) else [one for one in select if one not in there]
        if strange:
            raise ValueError(f"modules_to_train: there is no module {strange[0]!r}; there are {', '.join(there)}")

    def get_state(self, components: Names = None, not_components: Names = None) -> StateDict:
        """A copy of the state by components: ``rl_module``, ``optimizer``, ``metrics_logger``, or ``rl_module/<id>``.

        Who is updated, and how far the training is, goes with the whole state alone.

        Args:
            components: which; all of them where not given.
            not_components: which not.

        Raises:
            NonFiniteError: where weights are no numbers any more.
        """
        self._check_is_built()
        self.check_finite()
        return copied(self._state(components, not_components))

    def _state(self, components: Names = None, not_components: Names = None) -> StateDict:
        self._check_is_built()
        wanted = None if components is None else check_names(components, self.modules)
        unwanted = check_names(not_components, self.modules)
        state: StateDict = {"weights_seq_no": self.weights_seq_no}
        for name, state_of in ((RL_MODULE, self._networks_of), (OPTIMIZER, self._optimizer_of)):
            if is_wanted(name, wanted, unwanted):
                chosen = [one for one in self.modules if is_wanted(f"{name}/{one}", wanted, unwanted)]
                state[name] = {module_id: state_of(module_id) for module_id in chosen}
        if is_wanted(METRICS, wanted, unwanted):
            state[METRICS] = self.metrics.state_dict()
        return state if wanted is not None or unwanted else {**state, **self._state_of_all()}

    def _networks_of(self, module_id: str) -> StateDict:
        return networks_state(self.modules[module_id])

    def _optimizer_of(self, module_id: str) -> StateDict:
        own = self._own[module_id].state_dict()
        own["updates"] += self._has_stepped and module_id in self._updated  # which is counted when the next one begins
        return {**optimizations_state(self.modules[module_id]), **own}

    def _state_of_all(self) -> StateDict:
        """What is of no module: who is updated, but for functions, which are configuration, and where all are."""
        select = self.modules_to_train
        state: StateDict = {SELECTED: BY_FUNCTION if callable(select) else None if select is None else list(select)}
        return {**state, "progress": self.progress.state_dict()} if self.progress is self._own_progress else state

    def set_state(self, state: StateDict) -> None:
        """Take over all components that are in ``state``, and leave all others as they are.

        One that does not fit is a ``CheckpointError`` or a ``ValueError``, and changes nothing.
        """
        self._check_is_built()
        if not any(name in state for name in (*COMPONENTS, SELECTED)):
            there = ", ".join(map(str, state)) or "nothing"
            raise ValueError(f"a state has {', '.join(COMPONENTS)}; this one has {there}")
        parts = [METRICS, *(f"{name}/{one}" for name in (RL_MODULE, OPTIMIZER) for one in state.get(name, {}))]
        for name in (RL_MODULE, OPTIMIZER):
            check_modules(state.get(name, {}), self.modules, is_whole=False)
        before, was_stepped = copied({**self._state(parts), **self._state_of_all()}), self._has_stepped
        counts = {module_id: own.updates for module_id, own in self._own.items()}
        try:
            self._take(state)
        except BaseException as error:
            self._take(before)
            for module_id, own in self._own.items():
                own.updates = counts[module_id]
            self._has_stepped = was_stepped
            if isinstance(error, KeyError):
                raise CheckpointError(f"the state has no {error.args[0]}") from error
            raise

    def _take(self, state: StateDict) -> None:
        """An update that is under way is over for those modules whose state stays as it is, too."""
        self._end_update()
        for module_id, part in state.get(RL_MODULE, {}).items():
            load_networks(module_id, self.modules[module_id], part)
        for module_id, part in state.get(OPTIMIZER, {}).items():
            load_optimizations(module_id, self.modules[module_id], part)
            self._own[module_id].load_state_dict(part)
        if METRICS in state:
            self.metrics.load_state_dict(state[METRICS])
        if SELECTED in state:  # a whole one
            self._take_selection(state[SELECTED])
            self.weights_seq_no = state["weights_seq_no"]
        if "progress" in state and self.progress is self._own_progress:
            self.progress.load_state_dict(state["progress"])

    def _take_selection(self, select: Any) -> None:
        if select != BY_FUNCTION and not callable(self.modules_to_train):
            self._check_selection(select)
            self.modules_to_train = select

    def set_weights(self, state: StateDict) -> bool:
        """Take over weights that another learner sends, unless they are older than its own; says whether it did.

        Restoring a run is :meth:`set_state`, whatever is older there.
        """
        self._check_is_built()
        number = state.get("weights_seq_no", 0)
        if number and number <= self.weights_seq_no:
            return False
        self.set_state({RL_MODULE: state[RL_MODULE]})
        self.weights_seq_no = number or self.weights_seq_no
        return True

    def state_dict(self) -> StateDict:
        """The whole state, whose tensors are the learner's own; that of a subclass is what its ``get_state`` says."""
        return self.get_state() if self._overrides("get_state", of=Learner) else self._state()

    def load_state_dict(self, state: StateDict) -> None:
        """Take over a whole state; a ``CheckpointError`` where it is not of these modules."""
        self._check_is_built()
        for name in (RL_MODULE, OPTIMIZER):
            if name not in state:
                raise CheckpointError(f"the saved state of the learner has no {name}")
            check_modules(state[name], self.modules, is_whole=True)
        if self._overrides("set_state", of=Learner):
            self.set_state(state)
        else:
            self._take(state)


class _Callable(nn.Module):
    """Lets a plain function stand where a module is expected; what is saved of it are the parameters it moves."""

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.moved = nn.ParameterList(parameters)

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def count_parameters(modules: Mapping[str, Module]) -> dict[str, dict[str, int]]:
    """How many numbers are trained of each module and of all, and how many are not."""
    counts = {module_id: _numbers_of(module) for module_id, module in modules.items()}
    counts[ALL_MODULES] = [sum(both) for both in zip(*counts.values(), strict=True)]
    names = ("num_trainable_parameters", "num_non_trainable_parameters")
    return {module_id: dict(zip(names, both, strict=True)) for module_id, both in counts.items()}


def _numbers_of(module: Module) -> list[int]:
    moved = {id(one) for optimization in module.optimizations for one in optimization.parameters}
    numbers = [0, 0]
    for number, one in {id(one): one for net in module.networks.values() for one in net.model.parameters()}.items():
        numbers[number not in moved or not one.requires_grad] += one.numel()
    return numbers
