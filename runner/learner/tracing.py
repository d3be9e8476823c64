"""Losses and their gradients, recorded once as a flat list of torch calls and run from then on without autograd.

Autograd builds and walks a graph anew in every update, which for small networks costs as much as the maths. A recorded
program makes the very same kernel calls in the same order: its results are those of autograd, to the bit.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, MappingProxyType, MethodDescriptorType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

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
    """What one update computed: ``loss_*`` with per-sample outputs, and the gradients of the optimization.

    Without gradients it has the whole ``change``: tensors, and what they are to become; ``metrics`` tell about it.
    """

    losses: TensorDictBase
    gradients: list[Tensor | None] | None
    terms: Mapping[str, tuple[Tensor, int]]
    metrics: Mapping[str, Tensor] = MappingProxyType({})
    change: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None

    @classmethod
    def of(cls, outputs: Mapping[str, Any], gradients: list[Tensor | None] | None, *more: Any) -> "Recorded":
        losses: Any = TensorDict(dict(outputs), batch_size=[])
        terms = {key: (value, value._version) for key, value in outputs.items() if key.startswith("loss")}
        return cls(losses, gradients, terms, *more)

    def is_of(self, losses: Mapping[str, Tensor] | TensorDictBase) -> bool:
        """Whether ``losses`` are these, and not what someone has made of them."""
        given = {key: value for key, value in losses.items() if key.startswith("loss")}
        return given.keys() == self.terms.keys() and all(
            given[key] is value and value._version == version for key, (value, version) in self.terms.items()
        )

    def apply(self) -> None:
        """Let the change happen."""
        if self.change is not None:
            with torch.no_grad():
                torch._foreach_copy_(list(self.change[0]), list(self.change[1]))


class Inputs(NamedTuple):
    """What a recorded function reads from a batch, and the batches it was recorded for."""

    keys: list[NestedKey]
    kinds: list[tuple[torch.Size, torch.dtype]]
    present: set[NestedKey]
    outputs: list[str]

    def read(self, batch: TensorDictBase, present: set[NestedKey]) -> list[Tensor] | None:
        """Its inputs, or ``None`` where the batch has other keys (but for what the loss leaves there) or shapes."""
        if present.difference(self.outputs) != self.present:
            return None
        data = [batch.get(key) for key in self.keys]
        return data if [(part.shape, part.dtype) for part in data] == self.kinds else None


class HasInputs(Protocol):
    """A program, and what it reads from a batch."""

    @property
    def inputs(self) -> Inputs: ...


P = TypeVar("P", bound=HasInputs)


class Program(NamedTuple):
    """A recorded function of parameters and inputs."""

    run: Callable[..., Sequence[Tensor | None]]
    parameters: Sequence[Tensor]
    inputs: Inputs

    def __call__(self, data: Sequence[Tensor]) -> Recorded:
        outputs = self.inputs.outputs
        with torch.no_grad():
            values = self.run(*self.parameters, *data)
        losses: dict[str, Any] = dict(zip(outputs, values, strict=False))
        return Recorded.of(losses, list(values[len(outputs) :]))


class ByShape(ABC, Generic[P]):
    """Works an optimization's updates out by programs, one for each shape of batch; ``None`` leaves one to others.

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
        self._holder = Holder(networks, evaluate)
        self._parameters = list(self._holder.tensors().values())
        self._modules = list(self._holder.modules())
        self._buffered = [module for module in self._modules if module._buffers]
        self._programs: list[P] = []
        self._circumstances: Any = None
        self._has_buffers = self._is_hopeless = self._holder.has_changing_buffers()

    def __call__(self, batch: TensorDictBase) -> Recorded | None:
        if self._is_hopeless:
            return None
        circumstances = self._look()
        if circumstances != self._circumstances:
            self._circumstances = circumstances
            self._parameters = list(self._holder.tensors().values())
            self._programs.clear()
        present = leaves(batch)
        for program in self._programs:
            data = program.inputs.read(batch, present)
            if data is not None:
                return self._run(program, data)
        return self._first(batch)

    def _look(self) -> Any:
        """What a program takes for given besides its inputs."""
        return (
            dict(self.settings),
            dict(self.optimization.loss_weights),
            [module.training for module in self._modules],
            [parameter.requires_grad for parameter in self._parameters],
            [id(buffer) for module in self._buffered for buffer in module._buffers.values()],
        )

    @abstractmethod
    def _run(self, program: P, data: Sequence[Tensor]) -> Recorded:
        """What a program makes of its inputs."""

    @abstractmethod
    def _first(self, batch: TensorDictBase) -> Recorded | None:
        """A batch that no program is for: it may be given one."""


class GradientTracer(ByShape[Program]):
    """Computes an optimization's losses and gradients by recorded programs.

    What cannot be recorded (a loss whose course depends on numbers in the batch, networks with buffers that a forward
    pass may change) is left to autograd: the tracer then returns ``None``, and says so once in the log. Buffers that
    none changes are inputs, as parameters are.
    """

    def _run(self, program: Program, data: Sequence[Tensor]) -> Recorded:
        return program(data)

    def _first(self, batch: TensorDictBase) -> None:
        self._record(batch)

    def _record(self, batch: TensorDictBase) -> None:
        """Record a program for batches like this one, if it computes what autograd does; this batch is autograd's."""
        if len(self._programs) >= MOST_PROGRAMS:
            return
        try:
            with unchanged_generators():
                program = record(self._holder, self.optimization, batch)
                mine = program([batch.get(key) for key in program.inputs.keys])
            with unchanged_generators():
                theirs = self.evaluate(batch)
                gradients = self.optimization.compute_gradients(theirs)
            if not _are_equal([*_values(mine.losses), *(mine.gradients or [])], [*_values(theirs), *gradients]):
                raise ValueError("the recorded program computes something else")
            self._programs.append(program)
        except Exception as error:  # a loss is foreign code, and recording it may fail in any way
            self._is_hopeless = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.info("%s: updates are left to autograd (%s)", self.optimization.name, reason)


class Holder(nn.Module):
    """All networks that a loss reads under one roof, so that one call can swap their parameters for others."""

    def __init__(self, networks: Sequence[nn.Module], evaluate: Evaluate) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._evaluate = evaluate

    def forward(self, batch: TensorDictBase) -> TensorDictBase:
        return self._evaluate(batch)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name: all that a pure function of these networks reads of them."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def has_changing_buffers(self) -> bool:
        """Whether a module has buffers and does not promise, by ``constant_buffers``, that calling it changes none."""
        return any(one._buffers and not getattr(one, "constant_buffers", False) for one in self.modules())


def call_with(holder: nn.Module, tensors: Mapping[str, Tensor], batch: TensorDictBase) -> TensorDictBase:
    """The losses with other tensors in place of the networks' own.

    Each is swapped under its first name alone: where networks share a layer, torch would put it back wrongly.
    """
    return functional_call(holder, dict(tensors), (batch,), tie_weights=False)


def record(holder: Holder, optimization: Optimization, batch: TensorDictBase) -> Program:
    """Run the loss and its gradients once for ``batch``, noting down every kernel call."""
    names, parameters = list(holder.tensors()), list(holder.tensors().values())
    moved = [next(index for index, one in enumerate(parameters) if one is own) for own in optimization.parameters]
    keys = list(leaves(batch))
    outputs: list[str] = []

    def function(*inputs: Tensor) -> list[Tensor | None]:
        data = TensorDict(dict(zip(keys, inputs[len(names) :], strict=True)), batch_size=batch.batch_size)
        losses = call_with(holder, dict(zip(names, inputs, strict=False)), data)
        outputs[:] = list(losses.keys())
        own = [inputs[index] for index in moved]
        return [*(losses[key].detach() for key in outputs), *optimization.gradients(losses, own)]

    data = [batch.get(key) for key in keys]
    stand_ins = [one.detach().requires_grad_(one.requires_grad) for one in parameters]
    graph = make_fx(function)(*stand_ins, *data)
    simplify(graph)
    read = drop_unread_inputs(graph, len(names), len(keys))
    return Program(graph.forward, parameters, describe([keys[index] for index in read], batch, outputs))


def describe(read: list[NestedKey], batch: TensorDictBase, outputs: list[str]) -> Inputs:
    """The inputs of a function that was recorded for ``batch``, of which it reads some."""
    kinds = [(batch.get(key).shape, batch.get(key).dtype) for key in read]
    return Inputs(read, kinds, leaves(batch).difference(outputs), outputs)


def leaves(batch: TensorDictBase) -> set[NestedKey]:
    """The keys of all tensors in a batch."""
    return set(batch.keys(include_nested=True, leaves_only=True))


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


def drop_unread_inputs(module: fx.GraphModule, start: int, count: int) -> list[int]:
    """Take those of ``count`` inputs out that nothing reads; returns the positions, from ``start``, of the others."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"][start : start + count]
    read = [index for index, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return read


def _values(losses: TensorDictBase) -> list[Tensor]:
    return [losses.get(key) for key in losses.keys()]


@contextmanager
def unchanged_generators() -> Iterator[None]:
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
