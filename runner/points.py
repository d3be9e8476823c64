"""The points of the loop at which hooks plug in, and what an operation has to be to stand at one."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple, Protocol, Union, get_args, get_origin

from tensordict import TensorDictBase

from runner.spec import Abandoned, ContractError, EnvFault, Progress, StateDict

POINTS = {
    "batch_process": "data",
    "pre_steps_log": "log",
    "pre_optim_steps": "operation",
    "process_optim_batch": "data",
    "post_loss": "operation",
    "optimizer": "optimization",
    "post_optim": "operation",
    "post_optim_log": "log",
    "post_steps": "operation",
    "post_steps_log": "log",
}
"""The ten points of the loop in the order they fire, and the kind of each.

``data(batch) -> TensorDict`` replaces the batch; ``log(batch) -> dict | None`` returns metrics, where the reserved
key ``log_pbar`` says whether the progress bar shows them; an ``operation`` takes nothing (``post_loss`` takes the
sub-batch), and what it declares by the names ``trainer`` and ``batch`` (the one collected last, as processed);
``optimization(losses, sub_batch) -> dict | None`` moves the weights and may return metrics.
"""

IN_EACH_UPDATE = ("process_optim_batch", "post_loss", "optimizer", "post_optim", "post_optim_log")

ARGUMENTS = {"data": ("batch",), "log": ("batch",), "operation": (), "optimization": ("losses", "sub_batch")}
RETURNS: dict[str, tuple[type, ...]] = {
    "data": (TensorDictBase,),
    "log": (Mapping, NoneType),
    "optimization": (Mapping, NoneType),
}
RETURNS_IN_WORDS = {"data": "a TensorDict", "log": "a dict or None", "optimization": "a dict or None"}

Operation = Callable[..., Any]


class Clock(Protocol):
    """When an operation is due; see ``runner.hook.Interval``."""

    unit: str
    n: float

    def fires(self, progress: Progress) -> bool: ...

    def take_back(self) -> None: ...

    def fires_always(self, progress: Progress) -> None: ...

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class Registered(NamedTuple):
    """One operation at one point: what is called, with which keyword arguments, and what was registered."""

    operation: Operation
    kwargs: Mapping[str, Any]
    original: Operation
    every: Clock | None = None
    is_owned: bool = False
    """Whether the trainer made the interval, and has to save it."""

    def belongs_to(self, owner: Any) -> bool:
        return belongs_to(self.original, owner)

    def __str__(self) -> str:
        is_each = self.every is None or self.operation is self.original
        return name_of(self.original) + ("" if is_each else f" ({self.every})")


def belongs_to(operation: Operation, owner: Any) -> bool:
    """Whether the operation is the owner itself or one of its methods."""
    return operation is owner or getattr(operation, "__self__", None) is owner


def name_of(operation: Any) -> str:
    """What people know an operation by; one that stands for several says so itself, as ``shown_as``."""
    owner = getattr(operation, "__self__", None)
    if owner is not None and not isinstance(owner, type):
        return f"{type(owner).__name__}.{operation.__name__}"
    return str(getattr(operation, "shown_as", None) or getattr(operation, "__qualname__", type(operation).__name__))


def process(point: str, operations: Sequence[Registered], batch: TensorDictBase) -> TensorDictBase:
    """What the operations at a data point make of a batch, one after another."""
    for operation, kwargs, original, _, _ in operations:
        batch = operation(batch, **kwargs)
        if not isinstance(batch, TensorDictBase):
            returned = type(batch).__name__
            raise ContractError(f"{name_of(original)} at {point} must return a TensorDict; it returned {returned}")
    return batch


def operate(operations: Sequence[Registered], *arguments: Any) -> None:
    """Call the operations at a point that has no use for what they return."""
    for operation, kwargs, _, _, _ in operations:
        operation(*arguments, **kwargs)


class Intervals:
    """The intervals of operations whose owner does not save them, by point and name."""

    def __init__(self, operations: Mapping[str, list[Registered]]) -> None:
        self._operations = operations

    def _named(self) -> dict[str, Clock]:
        named: dict[str, Clock] = {}
        for point, operations in self._operations.items():
            counts: Counter[str] = Counter()
            for one in operations:
                if one.is_owned and one.every is not None:
                    name = f"{point}/{name_of(one.original)}"
                    counts[name] += 1
                    named[f"{name}/{counts[name]}"] = one.every
        return named

    def state_dict(self) -> StateDict:
        return {name: every.state_dict() for name, every in self._named().items()}

    def load_state_dict(self, state: StateDict) -> None:
        for name, every in self._named().items():
            if name in state:
                every.load_state_dict(state[name])


class Due:
    """Calls an operation when its interval fires; where it does not, a batch is passed on as it is."""

    def __init__(self, operation: Operation, every: Clock, progress: Progress, is_data: bool) -> None:
        self.operation, self.every, self.progress, self.is_data = operation, every, progress, is_data

    def __call__(self, *arguments: Any, **kwargs: Any) -> Any:
        if not self.every.fires(self.progress):
            return arguments[0] if self.is_data else None
        try:
            return self.operation(*arguments, **kwargs)
        except (Abandoned, EnvFault):  # to be done anew when the run goes on
            self.every.take_back()
            raise


def make_registered(
    point: str, operation: Operation, every: Clock | None, is_owned: bool, kwargs: Mapping[str, Any], trainer: Any
) -> Registered:
    """Check an operation against its point and make it ready to be called there; raises ``ContractError``."""
    if point not in POINTS:
        raise ValueError(f"no hook point {point!r}; there are {', '.join(POINTS)}")
    if not callable(operation):
        raise ContractError(f"what stands at {point} must be callable; {operation!r} is not")
    wanted = _declared(point, operation) - kwargs.keys()
    call = operation
    if "batch" in wanted:
        call = lambda **given: operation(batch=trainer.batch, **given)  # noqa: E731
    check_operation(point, operation, {**dict.fromkeys(wanted), **kwargs})
    given = {**kwargs, "trainer": trainer} if "trainer" in wanted else kwargs
    if every is not None and _is_each(every, point):
        every.fires_always(trainer.progress)
    elif every is not None:
        call = Due(call, every, trainer.progress, POINTS[point] == "data")
    return Registered(call, given, operation, every, is_owned)


def _is_each(every: Clock, point: str) -> bool:
    """Whether the interval is nothing but each time that the point fires."""
    return every.n == 1 and every.unit == ("updates" if point in IN_EACH_UPDATE else "batches")


def _declared(point: str, operation: Operation) -> set[str]:
    """Which of the two that may be had by name an operation without other arguments asks for."""
    signature = _signature(operation)
    if POINTS[point] != "operation" or point == "post_loss" or signature is None:
        return set()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name for one in signature.parameters.values() if one.kind in by_name} & {"trainer", "batch"}


def check_operation(point: str, operation: Operation, kwargs: Mapping[str, Any]) -> None:
    """Raise ``ContractError`` unless the signature and its annotations fit the kind of the point."""
    kind, signature = POINTS[point], _signature(operation)
    if signature is None:
        return
    arguments = ("sub_batch",) if point == "post_loss" else ARGUMENTS[kind]
    called = f"{name_of(operation)} at {point}: what stands there is called with ({', '.join(arguments)})"
    try:
        bound = signature.bind(*arguments, **kwargs)
    except TypeError as error:
        raise ContractError(f"{called}; {error}") from None
    if arguments and kind != "optimization":
        name = next(iter(bound.arguments))
        if not _fits(signature.parameters[name].annotation):
            raise ContractError(f"{called}, a TensorDict; its {name} is declared as {_shown(signature, name)}")
    if kind in RETURNS and not _may_be(signature.return_annotation, RETURNS[kind]):
        declared = inspect.formatannotation(signature.return_annotation)
        raise ContractError(f"{called} and returns {RETURNS_IN_WORDS[kind]}; it is declared to return {declared}")


def _shown(signature: inspect.Signature, name: str) -> str:
    return inspect.formatannotation(signature.parameters[name].annotation)


def _signature(operation: Operation) -> inspect.Signature | None:
    """The signature with its annotations evaluated where that is possible; ``None`` where Python knows none."""
    for eval_str in (True, False):
        try:
            return inspect.signature(operation, eval_str=eval_str)
        except (NameError, SyntaxError, AttributeError):
            continue
        except (TypeError, ValueError):
            return None
    return None


def _fits(annotation: Any) -> bool:
    """Whether a TensorDict may be given where this is declared."""
    if annotation is inspect.Parameter.empty:
        return True
    return any(
        not isinstance(bare := get_origin(one) or one, type)
        or issubclass(TensorDictBase, bare)
        or issubclass(bare, TensorDictBase)
        for one in _members(annotation)
    )


def _may_be(annotation: Any, allowed: tuple[type, ...]) -> bool:
    """Whether all that is declared to be returned is of these types; what is no plain type is let pass."""
    if annotation is inspect.Signature.empty:
        return True
    bares = [get_origin(one) or (NoneType if one is None else one) for one in _members(annotation)]
    return all(bare is Any or not isinstance(bare, type) or issubclass(bare, allowed) for bare in bares)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
