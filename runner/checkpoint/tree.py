"""Takes a nested state apart into a JSON skeleton and named tensors, and puts it together again; nothing is pickled.

JSON holds what JSON can hold exactly: ``None``, bool, str, finite floats, ints of up to 64 bits, lists, and dicts with
str keys. Anything else is an object with the key ``$`` that names what it stands for.
"""

import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import MemoryMappedTensor
from torch import Tensor

from runner.spec import Deferred

MAX_DEPTH = 64
MAX_INT_KEY = 2**60
"""Keys from here on may be chosen so that they all collide, and a dict of them takes hours."""
TAG = "$"
_PLAIN = (type(None), bool, str)
_DICTS = (dict, OrderedDict)
_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer, MemoryMappedTensor)
Path = tuple[str, ...]


def flatten(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """The JSON-able skeleton of ``state``, and its tensors by name in the order met; they share memory with ``state``.

    Raises:
        TypeError: for a part of a type that is not supported, naming its path, for example ``hooks.mine.cache: set``.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(state, (), tensors), tensors


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that ``flatten`` took apart; arrays share memory with ``tensors``.

    Raises:
        ValueError: where the skeleton is not one that ``flatten`` makes.
    """
    return _decode(skeleton, tensors, 0)


def _encode(value: Any, path: Path, tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if kind in _PLAIN or kind is Deferred:  # JSON asks the latter for its value when it is written
        return value
    if kind in _NUMBERS:
        return _NUMBERS[kind](value)
    if len(path) > MAX_DEPTH:
        raise TypeError(f"{_shown(path[:4])}...: nested deeper than {MAX_DEPTH} levels")
    if kind in _TENSORS:
        return _put("tensor", _plain_tensor(value, path), path, tensors)
    if kind in (np.ndarray, np.memmap) or isinstance(value, np.generic):
        return _put("scalar" if isinstance(value, np.generic) else "array", _array_tensor(value, path), path, tensors)
    if kind in (list, tuple):
        items = list(value)
        if not all(map(_is_plain, items)):
            items = [_encode(item, (*path, str(index)), tensors) for index, item in enumerate(items)]
        return items if kind is list else {TAG: "tuple", "items": items}
    if kind in _DICTS:
        return _encode_dict(value, path, tensors)
    raise TypeError(f"{_shown(path)}: {_name_of(kind)} cannot be saved; {_SUPPORTED}")


_SUPPORTED = "a state holds tensors, numpy arrays, int, float, bool, str, None, and dict, list, tuple of these"


def _encode_dict(value: dict[Any, Any], path: Path, tensors: dict[str, Tensor]) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise TypeError(f"{_shown(path)}: a dict key of type {_name_of(type(key))}; keys are str or int")
        if type(key) is int and abs(key) >= MAX_INT_KEY:
            raise TypeError(f"{_shown(path)}: a dict key of 2**60 or more")
    parts = [(key, _encode(part, (*path, str(key)), tensors)) for key, part in value.items()]
    if TAG in value or any(type(key) is int for key in value):
        return {TAG: "dict", "items": [[_encode(key, path, tensors), part] for key, part in parts]}
    return dict(parts)


def _is_plain(value: Any) -> bool:
    """Whether JSON holds ``value`` as it is; the states of generators are lists of hundreds of such."""
    kind = type(value)
    return kind in _PLAIN or (kind is int and -(2**63) < value < 2**63) or (kind is float and math.isfinite(value))


def _encode_int(value: int) -> Any:
    return value if value.bit_length() < 64 else {TAG: "int", "hex": hex(value)}


def _encode_float(value: float) -> Any:
    # JSON writes the shortest text that reads back as the same bits, but knows no nan and no infinity.
    return value if math.isfinite(value) else {TAG: "float", "bits": struct.pack(">d", value).hex()}


_NUMBERS: dict[type, Callable[[Any], Any]] = {int: _encode_int, float: _encode_float}


def _plain_tensor(value: Tensor, path: Path) -> Tensor:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise TypeError(f"{_shown(path)}: a sparse, quantized or meta tensor cannot be saved")
    plain = value.detach()
    plain = plain if type(plain) is Tensor else plain.as_subclass(Tensor)
    return plain.resolve_conj().resolve_neg()


def _array_tensor(value: Any, path: Path) -> Tensor:
    array = np.asarray(value)
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise TypeError(f"{_shown(path)}: a numpy {array.dtype} array cannot be saved") from None


def _put(kind: str, tensor: Tensor, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    name = "/".join(path)
    if "~" in name or name.count("/") >= len(path):
        name = "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)
    while name in tensors:  # the keys 1 and "1" of one dict
        name += "'"
    tensors[name] = tensor
    return {TAG: kind, "name": name}


def _decode(node: Any, tensors: Mapping[str, Tensor], depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, list):
        return [_decode(item, tensors, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    if TAG not in node:
        return {key: _decode(part, tensors, depth + 1) for key, part in node.items()}
    try:
        return _decode_tagged(node, tensors, depth)
    except (KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"a malformed {node[TAG]!r:.40}: {type(error).__name__} {error}") from None


def _decode_tagged(node: dict[str, Any], tensors: Mapping[str, Tensor], depth: int) -> Any:
    kind = node[TAG]
    if kind == "tuple":
        return tuple(_decode(item, tensors, depth + 1) for item in node["items"])
    if kind == "dict":
        return {_key(key): _decode(part, tensors, depth + 1) for key, part in node["items"]}
    if kind == "int":
        return int(node["hex"], 16)
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(node["bits"]))[0]
    if kind == "tensor":
        return tensors[node["name"]]
    if kind == "array":
        return tensors[node["name"]].numpy()
    if kind == "scalar":
        return tensors[node["name"]].numpy()[()]
    raise ValueError(f"unknown kind {kind!r:.40}")


def _key(key: Any) -> str | int:
    if type(key) is str or (type(key) is int and abs(key) < MAX_INT_KEY):
        return key
    raise ValueError(f"no key of a dict: {key!r:.40}")


def _shown(path: Path) -> str:
    return ".".join(path) or "the state"


def _name_of(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
