"""Values that a hint does not allow."""

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt

SAMPLES = {int: "3", float: "2.5", bool: "true", str: "abc", list: "[a,b]", dict: "{a:b}", NoneType: "null"}
TAKES_TOO = {float: (int,)}


def written(value: Any) -> str:
    """A value as Hydra's grammar reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    return str(value)


def members(hint: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """The members of a union without ``Annotated``, each with its notes."""
    bare, notes = (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())
    if get_origin(bare) in (Union, UnionType):
        return [found for member in get_args(bare) for found in members(member)]
    return [(bare, notes)]


def bad_types(hint: Any) -> list[str]:
    """Values of another type."""
    allowed: set[Any] = set()
    more: list[str] = []
    for bare, _ in members(hint):
        origin = get_origin(bare) or bare
        if origin is Any:
            return []
        allowed |= {origin, *TAKES_TOO.get(origin, ())}
        more += _bad_parts(bare, origin)
    return [text for kind, text in SAMPLES.items() if kind not in allowed] + more


def _bad_parts(bare: Any, origin: Any) -> list[str]:
    arguments = get_args(bare)
    if origin is list:
        return [f"[{text}]" for text in bad_types(arguments[0])]
    if origin is tuple:
        return ["[]", f"[{','.join(['0.5'] * (len(arguments) + 1))}]", "[" + ",".join(["x"] * len(arguments)) + "]"]
    if origin is dict and get_origin(arguments[0]) is Literal:
        return [f"{{{get_args(arguments[0])[0]}:{text}}}" for text in bad_types(arguments[1])]
    if origin is dict and arguments[1] is not Any:
        return [f"{{a:{text}}}" for text in bad_types(arguments[1])]
    return ["3"] if origin is Callable else []


def out_of_range(hint: Any) -> list[str]:
    """Values of the right type that are too small, too large or not on the list."""
    return [text for bare, notes in members(hint) for text in _beyond(bare, notes)]


def _beyond(bare: Any, notes: tuple[Any, ...]) -> list[str]:
    step, arguments = (1 if bare is int else 1e-6), get_args(bare)
    found = ["nan", "inf", "-inf"] if bare is float else []
    for note in notes:
        match note:
            case Ge(ge=least):
                found += [str(least - step), "-1000000"]
            case Gt(gt=least):
                found += [str(least), str(least - step), "-7"]
            case Le(le=most):
                found += [str(most + step), "1000000"]
            case Lt(lt=most):
                found += [str(most), str(most + step)]
            case Len(min_length=least) if least and get_origin(bare) is dict:
                found += ["{updates:1,episodes:2}"]
    if get_origin(bare) is Literal:
        found += [f"{arguments[0]}x", str(arguments[-1])[:-1], str(arguments[0]).upper()]
    if get_origin(bare) is list:
        found += [f"[{text}]" for text in out_of_range(arguments[0])]
    if get_origin(bare) is dict and get_origin(arguments[0]) is Literal:
        found += [f"{{{get_args(arguments[0])[0]}:{text}}}" for text in out_of_range(arguments[1])]
    return found
