"""Type hints in plain words."""

import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MaxLen, MinLen

from runner.types import NotBuilt

PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
    list: "a list",
    dict: "a mapping",
    Any: "any value",
}


def unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The bare hint and what ``Annotated`` says about it."""
    if get_origin(hint) is Annotated:
        bare, *notes = get_args(hint)
        return bare, tuple(notes)
    return hint, ()


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def literal_keys(hint: Any) -> tuple[tuple[str, ...], bool]:
    """The keys of a ``dict[Literal[...], ...]`` and whether exactly one must be given; no keys for other hints."""
    for member in union_members(unwrap(hint)[0] if get_origin(hint) is Annotated else hint):
        bare, notes = unwrap(member)
        notes = notes or unwrap(hint)[1]
        if get_origin(bare) is dict and get_origin(get_args(bare)[0]) is Literal:
            one = any(isinstance(note, Len) and note.max_length == 1 for note in notes)
            return get_args(get_args(bare)[0]), one
    return (), False


def literals(hint: Any) -> list[str]:
    """The words that a hint allows."""
    members = [unwrap(member)[0] for member in union_members(unwrap(hint)[0])]
    return [str(word) for member in members if get_origin(member) is Literal for word in get_args(member)]


def describe(hint: Any) -> str:
    """What values a hint allows, for example ``a number > 0``."""
    bare, notes = unwrap(hint)
    written = [note.description for note in notes if getattr(note, "description", None)]
    if written:
        return str(written[0])
    keys, one = literal_keys(hint)
    if keys and len(union_members(bare)) == 1:
        return f"{'one unit' if one else 'units'} ({', '.join(keys)}) and {describe(get_args(bare)[1])}"
    return f"{_describe_bare(bare)}{_describe_notes(notes)}"


def _describe_bare(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(hint)
    if len(union_members(hint)) > 1:
        return (", or " if literal_keys(hint)[0] else " or ").join(describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin is list or (origin is tuple and arguments[-1:] == (Ellipsis,)):
        return f"a list, each item {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: [{', '.join(describe(item) for item in arguments)}]"
    if origin is dict and arguments[1] is not Any:
        return f"a mapping, each value {describe(arguments[1])}"
    if is_factory(hint):
        return "a node with a _target_"
    return PLAIN.get(origin if origin is dict else hint) or str(getattr(hint, "__name__", hint))


def _describe_notes(notes: tuple[Any, ...]) -> str:
    kinds = {type(note): note for note in notes}
    if Ge in kinds and Le in kinds:
        return f" from {kinds[Ge].ge} to {kinds[Le].le}"
    signs = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}
    ranges = [f"{sign} {getattr(kinds[kind], name)}" for kind, (sign, name) in signs.items() if kind in kinds]
    sizes = [_describe_length(note) for note in notes if isinstance(note, Len | MinLen | MaxLen)]
    return "".join(f" {words}" for words in [" and ".join(ranges), *sizes] if words)


def _describe_length(note: Len | MinLen | MaxLen) -> str:
    least, most = getattr(note, "min_length", 0), getattr(note, "max_length", None)
    if most is None:
        return f"(at least {least} of them)" if least else ""
    return f"(exactly {least} of them)" if least == most else f"(at most {most} of them)"


def is_factory(hint: Any) -> bool:
    """Whether values are nodes that the builder hands over as functions."""
    return hint is Callable or get_origin(hint) is Callable or get_origin(hint) is get_origin(Callable[[], Any])


def is_wrapper(hint: Any) -> bool:
    """Whether the functions made of such nodes are given the first argument of their targets."""
    return any(is_factory(one) and len(get_args(one)[:1][0]) == 1 for one in union_members(hint) if get_args(one))


def is_not_built(hint: Any) -> bool:
    """Whether nodes in a value are left as they are."""
    return any(isinstance(note, NotBuilt) for note in unwrap(hint)[1])


def item_hint(hint: Any) -> Any:
    """What the items of a list or the values of a mapping have to be."""
    found = [get_args(one)[-1] for one in union_members(unwrap(hint)[0]) if get_origin(one) in (list, dict)]
    return found[0] if found else Any
