"""Losses and their gradients, recorded once as a flat list of torch calls and run from then on without autograd.

Autograd builds and walks a graph anew in every update, which for small networks costs as much as the maths. A recorded
program makes the very same kernel calls in the same order: its results are those of autograd, to the bit.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from runner.learner.optimization import Optimization

log = logging.getLogger(__name__)

MOST_PROGRAMS = 8
"""Of one optimization, each for batches of another shape; beyond that, autograd."""

Evaluate = Callable[[TensorDictBase], TensorDictBase]


class Recorded(NamedTuple):
    """What one update computed: ``loss_*`` with per-sample outputs, and the gradients of the optimization."""

    losses: TensorDictBase
    gradients: list[Tensor | None]

    def is_of(self, losses: Mapping[str, Tensor] | TensorDictBase) -> bool:
        """Whether ``losses`` are these, and not what someone has made of them."""
        return all(losses.get(key, None) is value for key, value in self.losses.items() if key.startswith("loss"))


class Program(NamedTuple):
    """A recorded function of parameters and data, and the circumstances under which it holds."""

    run: Callable[..., Sequence[Tensor | None]]
    parameters: list[Tensor]
    keys: list[NestedKey]
    data: list[tuple[torch.Size, torch.dtype]]
    outputs: list[str]
    given: set[NestedKey]

    def __call__(self, batch: TensorDictBase) -> Recorded | None:
        """Run for ``batch``; ``None`` if what it reads is not of the shapes and types it was recorded with."""
        data = [batch.get(key) for key in self.keys]
        if [(part.shape, part.dtype) for part in data] != self.data:
            return None
        with torch.no_grad():
            values = self.run(*self.parameters, *data)
        count = len(self.outputs)
        losses = TensorDict(dict(zip(self.outputs, values[:count], strict=True)), batch_size=[])
        return Recorded(losses, list(values[count:]))

    def is_for(self, keys: set[NestedKey]) -> bool:
        """Whether these are the keys of the batch it was recorded with, besides what the loss itself leaves there."""
        return keys.difference(self.outputs) == self.given


class GradientTracer:
    """Computes an optimization's losses and gradients by recorded programs, one for each shape of batch.

    What cannot be recorded (a loss whose course depends on numbers in the batch, networks with buffers) is left to
    autograd: the tracer then returns ``None``, and says so once in the log.

    Args:
        evaluate: a pure function of the batch and of ``networks``.
        networks: all modules whose parameters it reads.
        settings: plain values it depends on; a change of one of them is noticed.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        networks: Sequence[nn.Module],
        optimization: Optimization,
        settings: Mapping[str, Any],
    ) -> None:
        self.evaluate, self.optimization, self.settings = evaluate, optimization, settings
        self._holder = _Holder(networks, evaluate)
        self._parameters = list(self._holder.parameters())
        self._modules = list(self._holder.modules())
        self._programs: list[Program] = []
        self._circumstances: Any = None
        self._is_hopeless = any(True for _ in self._holder.buffers())

    def __call__(self, batch: TensorDictBase) -> Recorded | None:
        if self._is_hopeless:
            return None
        circumstances = self._look()
        if circumstances != self._circumstances:
            self._circumstances = circumstances
            self._programs.clear()
        keys = set(batch.keys(include_nested=True, leaves_only=True))
        for program in self._programs:
            recorded = program(batch) if program.is_for(keys) else None
            if recorded is not None:
                return recorded
        return self._record(batch)

    def _look(self) -> Any:
        """What a program takes for given besides its inputs."""
        return (
            dict(self.settings),
            dict(self.optimization.loss_weights),
            [module.training for module in self._modules],
            [parameter.requires_grad for parameter in self._parameters],
        )

    def _record(self, batch: TensorDictBase) -> None:
        """Record a program for batches like this one, if it computes what autograd does; this batch is autograd's."""
        if len(self._programs) >= MOST_PROGRAMS:
            return
        try:
            with _unchanged_generators():
                program = record(self._holder, self.optimization, batch)
                mine = program(batch)
                assert mine is not None
            with _unchanged_generators():
                theirs = self.evaluate(batch)
                gradients = self.optimization.compute_gradients(theirs)
            if not _are_equal([*mine.losses.values(), *mine.gradients], [*theirs.values(), *gradients]):
                raise ValueError("the recorded program computes something else")
            self._programs.append(program)
        except Exception as error:  # a loss is foreign code, and recording it may fail in any way
            self._is_hopeless = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.info("%s: updates are left to autograd (%s)", self.optimization.name, reason)


class _Holder(nn.Module):
    """All networks that a loss reads under one roof, so that one call can swap their parameters for others."""

    def __init__(self, networks: Sequence[nn.Module], evaluate: Evaluate) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._evaluate = evaluate

    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        return self._evaluate(batch)


def record(holder: nn.Module, optimization: Optimization, batch: TensorDictBase) -> Program:
    """Run the loss and its gradients once for ``batch``, noting down every kernel call."""
    names = [name for name, _ in holder.named_parameters()]
    parameters = list(holder.parameters())
    moved = [next(index for index, one in enumerate(parameters) if one is own) for own in optimization.parameters]
    keys = list(batch.keys(include_nested=True, leaves_only=True))
    outputs: list[str] = []

    def function(*inputs: Tensor) -> list[Tensor | None]:
        data = TensorDict(dict(zip(keys, inputs[len(names) :], strict=True)), batch_size=batch.batch_size)
        losses = functional_call(holder, dict(zip(names, inputs, strict=False)), (data,))
        outputs[:] = list(losses.keys())
        own = [inputs[index] for index in moved]
        return [*(losses[key].detach() for key in outputs), *optimization.gradients(losses, own)]

    data = [batch.get(key) for key in keys]
    stand_ins = [one.detach().requires_grad_(one.requires_grad) for one in parameters]
    graph = make_fx(function)(*stand_ins, *data)
    simplify(graph)
    read = _drop_unread_inputs(graph, len(names))
    return Program(
        graph.forward,
        parameters,
        [keys[index] for index in read],
        [(data[index].shape, data[index].dtype) for index in read],
        outputs,
        set(keys).difference(outputs),
    )


def simplify(module: fx.GraphModule) -> None:
    """Leave out calls that change nothing, and call torch's own bindings, which cost half of what operators do."""
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.t.default and getattr(node.args[0], "target", None) is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        if node.target is aten.scalar_tensor.default:
            _keep_as_constant(module, node)
        elif isinstance(node.target, torch._ops.OpOverload):
            _call_binding(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _keep_as_constant(module: fx.GraphModule, node: fx.Node) -> None:
    name = f"constant_{node.name}"
    setattr(module, name, node.target(*node.args, **node.kwargs))  # type: ignore[operator]
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(module.graph.create_node("get_attr", name))


def _call_binding(node: fx.Node) -> None:
    """Let a node call ``torch.<name>`` or ``Tensor.<name>`` in place of ``torch.ops.aten.<name>``."""
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    function, method = getattr(torch, name, None), getattr(Tensor, name, None)
    if isinstance(function, BuiltinFunctionType):
        node.target = function
    elif isinstance(method, MethodDescriptorType):
        node.op, node.target = "call_method", name


def _drop_unread_inputs(module: fx.GraphModule, num_parameters: int) -> list[int]:
    """Take data inputs out that nothing reads; returns the positions, among the data, of those that stay."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    read = [index for index, node in enumerate(inputs[num_parameters:]) if node.users]
    for node in inputs[num_parameters:]:
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return read


@contextmanager
def _unchanged_generators() -> Iterator[None]:
    """Let what runs inside draw random numbers without moving torch's generators on."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


def _are_equal(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> bool:
    """Whether both hold the same bits."""
    return all(
        mine is other if mine is None or other is None else torch.equal(mine, other)
        for mine, other in zip(ours, theirs, strict=True)
    )
