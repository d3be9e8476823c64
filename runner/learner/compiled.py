"""One compiled function for a whole update: losses, gradients, clipping and the optimizer's step (``compile=update``).

Torch's compiler gains nothing on a loss or a step alone; on both as one graph of pure tensor operations it does. It
costs seconds at the start, and rounds differently from :mod:`runner.learner.tracing`: it is for long runs.
"""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch._inductor
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, fx, nn, optim
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from runner.learner.optimization import Optimization
from runner.learner.tracing import (
    MOST_PROGRAMS,
    Evaluate,
    Holder,
    Inputs,
    Recorded,
    describe,
    drop_unread_inputs,
    leaves,
    unchanged_generators,
)

log = logging.getLogger(__name__)


class CompiledUpdate(NamedTuple):
    """A compiled function of weights, inputs, moments and learning rate, which moves the first and the third."""

    run: Callable[..., Sequence[Tensor]]
    inputs: Inputs
    metrics: list[str]

    def __call__(self, weights: Sequence[Tensor], data: Sequence[Tensor], moments: Sequence[Tensor]) -> Recorded:
        """``moments`` end with the learning rate."""
        with torch.no_grad():
            values = self.run(*weights, *data, *moments)
        outputs = self.inputs.outputs
        losses: Any = dict(zip(outputs, values[: len(outputs)], strict=True))
        metrics = dict(zip(self.metrics, values[len(outputs) :], strict=True))
        return Recorded(TensorDict(losses, batch_size=[]), None, metrics)


class UpdateCompiler:
    """Updates an optimization's networks by compiled functions, one for each shape of batch.

    What cannot be compiled is left to others: then it returns ``None``, and says so once in the log.

    Args:
        evaluate: a pure function of the batch and of ``networks``.
        networks: all modules whose parameters it reads.
        settings: plain values it depends on.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        networks: Sequence[nn.Module],
        optimization: Optimization,
        settings: Mapping[str, Any],
    ) -> None:
        self.optimization, self.settings = optimization, settings
        self._holder = Holder(networks, evaluate)
        self._weights = [one.detach() for one in self._holder.parameters()]
        self._lr = torch.zeros((), device=self._weights[0].device)
        self._updates: list[CompiledUpdate] = []
        self._compiled_for = dict(settings)
        self._moments: list[Tensor] = []
        self._moments_of: Any = None
        self._is_hopeless = any(True for _ in self._holder.buffers())

    def __call__(self, batch: TensorDictBase) -> Recorded | None:
        """Update by ``batch``: the weights have moved when this returns."""
        if self._is_hopeless:
            return None
        if self._compiled_for != self.settings:
            self._updates, self._compiled_for = [], dict(self.settings)
        moments = self._find_moments()
        present = leaves(batch)
        for update in self._updates:
            data = update.inputs.read(batch, present)
            if data is not None:
                return update(self._weights, data, moments)
        return self._compile(batch, moments)

    def _find_moments(self) -> list[Tensor]:
        """All tensors of the optimizer's state in a fixed order, then the learning rate."""
        optimizer = self.optimization.optimizer
        if self._moments_of is not optimizer.state:  # the first time, and after a load
            self._moments = [*_moments(optimizer, self.optimization.parameters), self._lr]
            self._moments_of = optimizer.state
        self._lr.fill_(optimizer.param_groups[0]["lr"])
        return self._moments

    def _compile(self, batch: TensorDictBase, moments: list[Tensor]) -> Recorded | None:
        if len(self._updates) >= MOST_PROGRAMS:
            return None
        try:
            with unchanged_generators():
                update = compile_update(self._holder, self.optimization, batch, moments)
        except Exception as error:  # the compiler, or a loss, may fail in any way
            self._is_hopeless = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("compile=update: %s is not compiled (%s)", self.optimization.name, reason)
            return None
        self._updates.append(update)
        return update(self._weights, [batch.get(key) for key in update.inputs.keys], moments)


def _moments(optimizer: optim.Optimizer, parameters: Sequence[Tensor]) -> list[Tensor]:
    """All tensors of an optimizer's state; a fresh optimizer is given one of zeros."""
    if not optimizer.state:
        _begin(optimizer)
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _begin(optimizer: optim.Optimizer) -> None:
    """Make the state that a first step would begin with: its step on zero gradients, set to zero."""
    first = copy.deepcopy(optimizer)
    for group in first.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    first.step()
    state = first.state_dict()["state"]
    zeros = {
        index: {name: torch.zeros_like(value) for name, value in moments.items() if isinstance(value, Tensor)}
        for index, moments in state.items()
    }
    optimizer.load_state_dict({"state": zeros, "param_groups": optimizer.state_dict()["param_groups"]})


def compile_update(
    holder: nn.Module, optimization: Optimization, batch: TensorDictBase, moments: Sequence[Tensor]
) -> CompiledUpdate:
    """Record a whole update for batches like this one, compile it, and make sure that it computes the same."""
    if len(optimization.optimizer.param_groups) != 1:
        raise ValueError("its optimizer has several parameter groups")
    outputs: list[str] = []
    metrics: list[str] = []
    keys = list(leaves(batch))
    weights = [one.detach() for one in holder.parameters()]
    function = _as_function(holder, optimization, batch, keys, (outputs, metrics))
    example = _cloned([*weights, *[batch.get(key) for key in keys], *moments])
    graph = make_fx(function)(*example)
    read = [keys[index] for index in drop_unread_inputs(graph, len(weights), len(keys))]
    inputs = [*weights, *[batch.get(key) for key in read], *moments]
    run = _compile_graph(graph, inputs)
    _check_parity(graph, run, inputs)
    return CompiledUpdate(run, describe(read, batch, outputs), metrics)


def _as_function(
    holder: nn.Module, optimization: Optimization, batch: TensorDictBase, keys: list[Any], names: tuple[list, list]
) -> Callable[..., list[Tensor]]:
    """The update as a function of weights, data, moments and learning rate; ``names`` gets those of its values."""
    parameters = dict(holder.named_parameters())
    moved = [index for own in optimization.parameters for index, one in enumerate(parameters.values()) if one is own]

    def function(*inputs: Tensor) -> list[Tensor]:
        weights, rest = inputs[: len(parameters)], inputs[len(parameters) :]
        leaf = [
            weight.detach().requires_grad_(one.requires_grad)
            for weight, one in zip(weights, parameters.values(), strict=True)
        ]
        data = TensorDict(dict(zip(keys, rest, strict=False)), batch_size=batch.batch_size)
        losses = functional_call(holder, dict(zip(parameters, leaf, strict=True)), (data,))
        gradients = optimization.gradients(losses, [leaf[index] for index in moved])
        with torch.no_grad():
            told = optimization.postprocess_gradients(gradients)
            _step(optimization, [weights[index] for index in moved], gradients, rest[len(keys) :])
        names[0][:], names[1][:] = list(losses.keys()), list(told)
        return [*(losses[key].detach() for key in names[0]), *told.values()]

    return function


def _step(
    optimization: Optimization, weights: list[Tensor], gradients: Sequence[Tensor | None], moments: Sequence[Tensor]
) -> None:
    """The optimizer's own step, on tensors that stand in for its parameters and its state.

    Of torch's variants the differentiable one never reads a number out of a tensor, unless the learning rate is one:
    so it steps at the rate 1, and of each change the weights keep what the rate says (every rule is linear in it).
    """
    optimizer, given = optimization.optimizer, iter(moments)
    twin = copy.copy(optimizer)
    options = {"fused": False, "foreach": False, "capturable": False, "differentiable": True, "lr": 1.0}
    group = optimizer.param_groups[0]
    twin.param_groups = [{**group, **{name: options[name] for name in options if name in group}, "params": weights}]
    twin.state = defaultdict(dict)
    before = [weight.clone() for weight in weights]
    for own, weight, gradient in zip(optimization.parameters, weights, gradients, strict=True):
        state = optimizer.state.get(own, {})
        twin.state[weight] = {key: next(given) if isinstance(one, Tensor) else one for key, one in state.items()}
        weight.grad = gradient
    kind = next(one for one in type(optimizer).__mro__ if one.__module__.startswith("torch.optim"))
    kind.step(twin)  # type: ignore[attr-defined]
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(torch.lerp(old, weight, moments[-1]))


def _compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """By torch's compiler; on a GPU the calls are recorded in a CUDA graph."""
    options = {"triton.cudagraphs": inputs[0].is_cuda}
    return torch._inductor.compile(copy.deepcopy(graph), list(inputs), options=options)


def _check_parity(graph: fx.GraphModule, run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` where the compiled function computes something else than its graph, but for rounding."""
    ours, theirs = _cloned(inputs), _cloned(inputs)
    with torch.no_grad():
        values = [*run(*ours), *ours], [*graph(*theirs), *theirs]
    if not all(torch.allclose(mine, other, rtol=1e-3, atol=1e-5) for mine, other in zip(*values, strict=True)):
        raise ValueError("the compiled update computes something else")


def _cloned(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
