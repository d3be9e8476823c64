"""One compiled function for a whole update: losses, gradients, clipping and the optimizer's step (``compile=update``).

Torch's compiler gains nothing on a loss or a step alone; on both as one graph of pure tensor operations it does. It
costs seconds at the start, and rounds differently from :mod:`runner.learner.tracing`: it is for long runs.
"""

import copy
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._inductor
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, fx, nn, optim
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.fx.experimental.proxy_tensor import make_fx

from runner.learner.optimization import Optimization
from runner.learner.optimizers import Adam
from runner.learner.tracing import (
    MOST_PROGRAMS,
    ByShape,
    Evaluate,
    Holder,
    Inputs,
    Recorded,
    call_with,
    describe,
    drop_unread_inputs,
    leaves,
    unchanged_generators,
)

log = logging.getLogger(__name__)

OPTIMIZERS = (Adam, optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop)
"""Each of these changes weights by its learning rate times something, and begins with a state of zeros."""
TRIED_LR = 0.5
"""The rate at which a compiled update is compared with the optimizer's own: a small one would hide what is wrong."""
LARGEST_DIFFERENCE = 1e-2
"""Between the two changes of a tensor, relative to the change, in the 2-norm. Adam divides rounding by rounding where
a gradient is nearly zero, which comes to 1e-3; a wrong sign, rate or clip to far more."""
CACHE = "TORCHINDUCTOR_CACHE_DIR"

State = dict[int, dict[str, Any]]
"""What an optimizer knows of each parameter, by the parameter's position."""


class CompiledUpdate(NamedTuple):
    """A compiled function of weights, inputs, moments and learning rate, which returns new ones of the first and third.

    Its values are the losses and what else ``inputs.outputs`` names, ``metrics``, then new weights and moments.
    """

    run: Callable[..., Sequence[Tensor]]
    inputs: Inputs
    metrics: list[str]

    def __call__(
        self, weights: Sequence[Tensor], data: Sequence[Tensor], moments: Sequence[Tensor], moving: Sequence[Tensor]
    ) -> Recorded:
        """``moments`` end with the learning rate; ``moving`` are the weights and the moments that are to change."""
        with torch.no_grad():
            values = list(self.run(*weights, *data, *moments))
        told = len(self.inputs.outputs) + len(self.metrics)
        if weights[0].is_cuda:  # a CUDA graph writes into the same memory next time, and these are read later
            values[:told] = _cloned(values[:told])
        outputs = dict(zip(self.inputs.outputs, values, strict=False))
        metrics = dict(zip(self.metrics, values[len(outputs) : told], strict=True))
        return Recorded.of(outputs, None, metrics, (moving, values[told:]))


class UpdateCompiler(ByShape[CompiledUpdate]):
    """Works out an optimization's whole updates by compiled functions; nothing moves before one is applied.

    What cannot be compiled is left to others: then it returns ``None``, and says so once in the log.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        networks: Sequence[nn.Module],
        optimization: Optimization,
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__(evaluate, networks, optimization, settings)
        self._places: list[int] = []
        self._weights: list[Tensor] = []
        self._lr = torch.zeros((), device=self._parameters[0].device)
        self._compilations = 0
        self._moments: list[Tensor] = []
        self._moments_of: Any = None
        if (reason := self._why_not()) is not None:
            self._give_up(reason)

    def _why_not(self) -> str | None:
        optimizer = self.optimization.optimizer
        if type(optimizer) not in OPTIMIZERS:
            return f"nothing is known of {type(optimizer).__name__}"
        if len(optimizer.param_groups) != 1:
            return "its optimizer has several parameter groups"
        if self.optimization.scaler is not None:
            return "its losses are scaled"
        if self.optimization.non_finite != "raise":
            return f"non_finite={self.optimization.non_finite} looks at the gradients of each update"
        return "a network has buffers of its own" if self._has_buffers else None

    def _give_up(self, reason: str) -> None:
        self._is_hopeless = True
        log.warning("compile=update: %s is not compiled (%s)", self.optimization.name, reason)

    def _look(self) -> Any:
        (group,) = self.optimization.optimizer.param_groups
        values = {name: value for name, value in group.items() if name not in ("lr", "initial_lr", "params")}
        clip = self.optimization.clip
        rules = (values, None if clip is None else (clip.max, clip.by), self.optimization.non_finite)
        return rules, super()._look()

    def _run(self, program: CompiledUpdate, data: Sequence[Tensor]) -> Recorded:
        optimizer = self.optimization.optimizer
        places = [one.data_ptr() for one in self._parameters]
        if self._moments_of is not optimizer.state or places != self._places:  # the first time, and after a load
            self._weights, self._places = [one.detach() for one in self._parameters], places
            self._moments, self._moments_of = _moments_in(optimizer, self.optimization.parameters), optimizer.state
        self._lr.fill_(optimizer.param_groups[0]["lr"])
        moving = [*(one.detach() for one in self.optimization.parameters), *self._moments]
        return program(self._weights, data, [*self._moments, self._lr], moving)

    def _first(self, batch: TensorDictBase) -> Recorded | None:
        made = self._compile(batch)
        return None if made is None else self._run(made, [batch.get(key) for key in made.inputs.keys])

    def _compile(self, batch: TensorDictBase) -> CompiledUpdate | None:
        """An update for batches like this one; the optimizer is given a state once it is known to be of use."""
        if self._compilations >= MOST_PROGRAMS:
            return None
        self._compilations += 1
        optimizer = self.optimization.optimizer
        try:
            with unchanged_generators():
                state = _begun(optimizer)
                update = compile_update(self._holder, self.optimization, batch, state)
        except Exception as error:  # the compiler, or a loss, may fail in any way
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])
            return None
        if not optimizer.state:
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._programs.append(update)
        return update


def _moments_in(optimizer: optim.Optimizer, parameters: Sequence[Tensor]) -> list[Tensor]:
    return _tensors_of({index: optimizer.state.get(one, {}) for index, one in enumerate(parameters)})


def _tensors_of(state: State) -> list[Tensor]:
    """All tensors of a state, in a fixed order."""
    return [value for index in sorted(state) for value in state[index].values() if isinstance(value, Tensor)]


def _begun(optimizer: optim.Optimizer) -> State:
    """The optimizer's state, or what a first step begins with: that after a step on zero gradients, set to zero."""
    if optimizer.state:
        return optimizer.state_dict()["state"]
    first = copy.deepcopy(optimizer)
    for parameter in first.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    type(first).step(first)  # not what a scheduler has put in its place, which steps the original
    return {
        index: {name: torch.zeros_like(value) for name, value in moments.items() if isinstance(value, Tensor)}
        for index, moments in first.state_dict()["state"].items()
    }


def compile_update(holder: Holder, optimization: Optimization, batch: TensorDictBase, state: State) -> CompiledUpdate:
    """Record a whole update for batches like this one, compile it, and make sure that it computes the same."""
    outputs: list[str] = []
    metrics: list[str] = []
    keys = list(leaves(batch))
    weights = [one.detach() for one in holder.tensors().values()]
    moments = [*_tensors_of(state), weights[0].new_tensor(TRIED_LR)]
    function = _as_function(holder, optimization, batch, keys, state, (outputs, metrics))
    graph = make_fx(function)(*_cloned([*weights, *[batch.get(key) for key in keys], *moments]))
    _multiply_before_adding(graph)
    read = [keys[index] for index in drop_unread_inputs(graph, len(weights), len(keys))]
    data = [batch.get(key) for key in read]
    update = CompiledUpdate(_compile_graph(graph, [*weights, *data, *moments]), describe(read, batch, outputs), metrics)
    moving = [*(one.detach() for one in optimization.parameters), *moments[:-1]]
    _check_parity(update(weights, data, moments, moving), holder, optimization, batch)
    return update


def _as_function(
    holder: Holder,
    optimization: Optimization,
    batch: TensorDictBase,
    keys: list[Any],
    state: State,
    names: tuple[list[str], list[str]],
) -> Callable[..., list[Tensor]]:
    """The update as a function of weights, data, moments and learning rate; ``names`` gets those of its values."""
    parameters = holder.tensors()
    moved = [index for own in optimization.parameters for index, one in enumerate(parameters.values()) if one is own]

    def function(*inputs: Tensor) -> list[Tensor]:
        weights, rest = inputs[: len(parameters)], inputs[len(parameters) :]
        leaf = [
            weight.detach().requires_grad_(one.requires_grad)
            for weight, one in zip(weights, parameters.values(), strict=True)
        ]
        data = TensorDict(dict(zip(keys, rest, strict=False)), batch_size=batch.batch_size)
        losses = call_with(holder, dict(zip(parameters, leaf, strict=True)), data)
        gradients = optimization.gradients(losses, [leaf[index] for index in moved])
        with torch.no_grad():
            told = optimization.postprocess_gradients(gradients)
            moments, lr = _cloned(rest[len(keys) : -1]), rest[-1]
            changed = _step(optimization.optimizer, [weights[index] for index in moved], gradients, moments, lr, state)
        names[0][:], names[1][:] = list(losses.keys()), list(told)
        return [*(losses[key].detach() for key in names[0]), *told.values(), *changed, *moments]

    return function


def _step(
    optimizer: optim.Optimizer,
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    moments: Sequence[Tensor],
    lr: Tensor,
    state: State,
) -> list[Tensor]:
    """New weights by the optimizer's own step, which changes ``moments`` in place.

    Of torch's variants the differentiable one never reads a number out of a tensor, unless the learning rate is one.
    So it moves zeros at the rate 1, without weight decay, and the weights follow as far as the rate says: all of
    ``OPTIMIZERS`` are linear in it.
    """
    (group,), given, twin = optimizer.param_groups, iter(moments), copy.copy(optimizer)
    changes = [torch.zeros_like(weight) for weight in weights]
    options: dict[str, Any] = {"fused": False, "foreach": False, "capturable": False, "differentiable": True}
    options |= {"lr": 1.0, "weight_decay": 0.0, "params": changes}
    twin.param_groups = [{**group, **{name: value for name, value in options.items() if name in group}}]
    twin.state = defaultdict(dict)
    decay, is_decoupled = group["weight_decay"], group.get("decoupled_weight_decay", False)
    for index, (change, weight, gradient) in enumerate(zip(changes, weights, gradients, strict=True)):
        own = state.get(index, {})
        twin.state[change] = {key: next(given) if isinstance(one, Tensor) else one for key, one in own.items()}
        if gradient is not None:
            pull = 0.0 if is_decoupled else -decay if group["maximize"] else decay
            change.grad = gradient + pull * weight if pull else gradient
    kind = next(one for one in type(optimizer).__mro__ if one.__module__.startswith("torch.optim"))
    kind.step(twin)  # type: ignore[attr-defined]
    shrink = 1 - lr * decay if is_decoupled and decay else None
    return [
        weight if gradient is None else (weight if shrink is None else weight * shrink) + lr * change
        for weight, gradient, change in zip(weights, gradients, changes, strict=True)
    ]


def _multiply_before_adding(graph: fx.GraphModule) -> None:
    """Write ``add(x, y, alpha=a)`` as ``add(x, a * y)``: torch 2.13's compiler forgets ``a`` where ``y`` is a product.

    It makes one ``addmm`` of both.
    """
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        alpha = node.kwargs.get("alpha", 1)
        if node.target in (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor) and alpha != 1:
            with graph.graph.inserting_before(node):
                scaled = graph.graph.call_function(aten.mul.Tensor, (node.args[1], alpha))
            node.args, node.kwargs = (node.args[0], scaled), {}
    graph.recompile()


def _compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """By torch's compiler; on a GPU it is asked to record the calls in a CUDA graph."""
    options = {"triton.cudagraphs": inputs[0].is_cuda}
    with own_cache():
        return torch._inductor.compile(copy.deepcopy(graph), [*_cloned(inputs)], options=options)


@contextmanager
def own_cache() -> Iterator[None]:
    """Compiled code is kept where only this user can put any: torch's own choice is a folder in ``/tmp``."""
    before = os.environ.get(CACHE)
    if before not in (None, default_cache_dir()):  # torch writes its choice there, too
        yield
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home, "hookline", "compiled")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        os.environ[CACHE] = before or default_cache_dir()


def _check_parity(ours: Recorded, holder: nn.Module, optimization: Optimization, batch: TensorDictBase) -> None:
    """Raise ``ValueError`` where a compiled update changes something otherwise than the optimizer's own step does."""
    parameters: Any
    parameters, optimizer = copy.deepcopy((dict(holder.named_parameters()), optimization.optimizer))
    (group,) = optimizer.param_groups
    group["lr"] = TRIED_LR
    with unchanged_generators():
        losses = call_with(holder, parameters, batch.clone())
    gradients = optimization.gradients(losses, group["params"])
    told = optimization.postprocess_gradients(gradients)
    for parameter, gradient in zip(group["params"], gradients, strict=True):
        parameter.grad = gradient
    type(optimizer).step(optimizer)
    theirs = [*(one.detach() for one in group["params"]), *_moments_in(optimizer, group["params"])]
    assert ours.change is not None
    before, after = ours.change
    if len(after) != len(theirs):
        raise ValueError("the optimizer's state is not of the kind that it begins with")
    changes = [(new - old, other - old) for old, new, other in zip(before, after, theirs, strict=True)]
    values = [(ours.losses[key], losses[key].detach()) for key in ours.losses.keys()]
    values += [(ours.metrics[name], value) for name, value in told.items()]
    if not all((mine - other).norm() <= LARGEST_DIFFERENCE * other.norm() for mine, other in [*changes, *values]):
        raise ValueError("the compiled update computes something else")


def _cloned(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
