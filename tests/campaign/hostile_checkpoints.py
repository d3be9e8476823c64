"""Checkpoints that are sealed as they should be, and hold what no run would have saved."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.campaign.hostile import Payload
from tests.campaign.hostile_seal import Change, manifest, newest, reseal, state, text

BACK = ("fell back",)
HUGE = 10**30
BIG_INT = "9" * 5000
MIB = 2**20


def tensor_payloads() -> Iterator[Payload]:
    """Tensors that are declared to be what they are not."""
    shapes: dict[str, Any] = {
        "10 GB": [10 * 2**30],
        "negative": [-1],
        "overflow": [2**63],
        "overflow of a product": [2**32, 2**32],
        "10^30": [HUGE],
        "a million dimensions": [1] * 10**6,
        "a million huge ones": [10**300] * 10**5,
        "nested": [[1]],
        "true": [True],
        "a number": 7,
        "a float": [1.5],
        "a text": "12",
        "null": None,
        "zero times huge": [0, HUGE],
        "zero times overflow": [0, 2**62, 2**62],
    }
    for name, shape in shapes.items():
        yield Payload("tensor", f"shape: {name}", state(_meta(lambda meta, shape=shape: [meta[0], shape])), expect=BACK)
    names = (
        "load",
        "_inductor",
        "_dynamo",
        "onnx",
        "ops",
        "hub",
        "classes",
        "__builtins__",
        "__class__",
        "float32 ",
        "qint8",
        "bits8",
        "Tensor",
        "nn.functional",
        "complex32\0",
        7,
        None,
        ["float32"],
        "x" * MIB,
    )
    for dtype in names:
        label = repr(dtype)[:20]
        yield Payload("tensor", f"type {label}", state(_meta(lambda meta, dtype=dtype: [dtype, meta[1]])), expect=BACK)
    yield Payload("tensor", "an entry too long", state(_meta(lambda meta: [*meta, "x"])), expect=BACK)
    yield Payload("tensor", "a million empty ones", state(_many_empty), expect=BACK)
    for name in ("../../../secret/bashrc", "/etc/passwd", "a\0b", "x" * 10**5, "\ud800", "a\n\x1b]0;title\x07b"):
        yield Payload("tensor", f"called {name[:24]!r}", state(_renamed(name)), expect=("fell back", "harmless"))
        yield Payload("tensor", f"called {name[:24]!r} (torch)", state(_renamed(name)), template="torch")
    yield Payload("tensor", "a 256 MB file of nothing", _sparse, expect=BACK)
    yield Payload("tensor", "a 256 MB file of nothing (torch)", _sparse, template="torch", expect=BACK)


def _meta(change: Callable[[Any], Any]) -> Change:
    """Change how the largest tensor is declared."""

    def apply(content: dict[str, Any]) -> None:
        tensors = content["tensors"]
        name = max(tensors, key=lambda name: len(str(tensors[name])))
        tensors[name] = change(tensors[name])

    return apply


def _many_empty(content: dict[str, Any]) -> None:
    content["tensors"] |= {f"x{number}": ["float32", [0]] for number in range(10**6)}


def _renamed(name: str) -> Change:
    def apply(content: dict[str, Any]) -> None:
        first = next(iter(content["tensors"]))
        content["tensors"] = {name if key == first else key: meta for key, meta in content["tensors"].items()}
        content["components"] = json.loads(json.dumps(content["components"]).replace(f'"{first}"', json.dumps(name)))

    return apply


def _sparse(run: Path) -> None:
    """A file that is large, takes no room, and is declared to be a tensor."""
    path = max((newest(run) / "payload").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    state(_meta(lambda meta: ["uint8", [2**28]]))(run)
    os.truncate(path, 2**28)
    reseal(newest(run))


def skeleton_payloads() -> Iterator[Payload]:
    """What is besides the tensors: objects that stand for something else, nesting, numbers that collide."""
    nodes: dict[str, Any] = {
        "an unknown kind": {"$": "pickle", "data": "gASVIg=="},
        "cloudpickle": {"$": "cloudpickle", "data": "gASV"},
        "a class": {"$": "object", "class": "os.system"},
        "py/object": {"py/object": "os.system"},
        "py/reduce": {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["touch executed"]}]},
        "__reduce__": {"__reduce__": ["os.system", ["touch executed"]]},
        "__class__": {"__class__": "os.system"},
        "no kind": {"$": None},
        "a kind that is a list": {"$": []},
        "a tensor that is not there": {"$": "tensor", "name": "no"},
        "a tensor by a list": {"$": "tensor", "name": []},
        "bits too long": {"$": "float", "bits": "00" * 10**6},
        "an integer of a megabyte": {"$": "int", "hex": "0x" + "f" * MIB},
        "not hex": {"$": "int", "hex": "os"},
        "keys that are lists": {"$": "dict", "items": [[[1], 2]]},
        "items that are none": {"$": "dict", "items": [1]},
        "keys that collide": {"$": "dict", "items": [[(2**61 - 1) * n, 0] for n in range(1, 150_000)]},
        "a tuple of nothing": {"$": "tuple"},
        "deep lists": _nested(900, "[", "]"),
        "deep tuples": _tuples(60),
        "a scalar that is a text": {"$": "scalar", "name": 1},
        "an array of lists": {"$": "array", "name": {}},
    }
    for name, node in nodes.items():
        yield Payload("skeleton", name, state(lambda content, node=node: content["components"].update(evil=node)))
    for name in ("__class__", "__dict__", "__init__", "load_state_dict", "../x"):
        yield Payload("skeleton", f"a part called {name}", state(lambda c, name=name: _add(c, name, {"x": 1})))
    yield Payload("skeleton", "components that are a list", state(lambda content: content | {"components": []}))
    yield Payload("skeleton", "components that are a tensor", state(_all_a_tensor))
    yield Payload("skeleton", "tensors that are a list", state(lambda content: content | {"tensors": [1]}), expect=BACK)


def _add(content: dict[str, Any], name: str, value: Any) -> None:
    content["components"][name] = value


def _all_a_tensor(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"components": {"$": "tensor", "name": next(iter(content["tensors"]))}}


def _nested(depth: int, opening: str, closing: str) -> Any:
    return json.loads(opening * depth + closing * depth)


def _tuples(depth: int) -> Any:
    node: Any = 1
    for _ in range(depth):
        node = {"$": "tuple", "items": [node, node] if depth < 3 else [node]}
    return node


def value_payloads() -> Iterator[Payload]:
    """Parts whose state is of another type, or holds numbers that no run has."""
    for part in ("progress", "learner", "source", "collector", "metrics", "streams", "stop"):
        for value in (None, [], {}, "x", HUGE, {"x": {"x": 1}}):
            label = f"{part} is {str(value)[:12]}"
            yield Payload("value", label, state(lambda content, part=part, value=value: _add(content, part, value)))
    yield Payload("value", "every number is huge", state(lambda content: _map(content, _huge)))
    yield Payload("value", "every number is negative", state(lambda content: _map(content, _negative)))
    yield Payload("value", "every number is a text", state(lambda content: _map(content, lambda value: str(value))))
    yield Payload("value", "every number is null", state(lambda content: _map(content, lambda value: None)))
    yield Payload("value", "every list is empty", state(lambda content: _map(content, lambda value: value, list)))
    yield Payload("value", "a position beyond numpy's generator", state(_misplace), expect=BACK)
    yield Payload("value", "every byte of every tensor is 255", _fill(255))
    yield Payload("value", "every byte of every tensor is 0", _fill(0))


def _misplace(content: dict[str, Any]) -> None:
    content["components"]["streams"]["numpy"]["at"][0] = 10**6


def _huge(value: Any) -> Any:
    return 2**62


def _negative(value: Any) -> Any:
    return -1 - abs(value)


def _map(content: dict[str, Any], change: Callable[[Any], Any], emptied: type | None = None) -> None:
    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: part if name in ("$", "name", "bits", "hex") else walk(part) for name, part in node.items()}
        if isinstance(node, list):
            return [] if emptied is list else [walk(part) for part in node]
        return change(node) if isinstance(node, int | float) and not isinstance(node, bool) else node

    content["components"] = walk(content["components"])


def _fill(byte: int) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        for path in (newest(run) / "payload").rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                path.write_bytes(bytes([byte]) * path.stat().st_size)
        reseal(newest(run))

    return apply


def manifest_payloads() -> Iterator[Payload]:
    """Manifests: lists of files that lead elsewhere, numbers, names and texts to be printed."""
    yield from _listed_payloads()
    yield from _field_payloads()
    for name, raw in json_texts():
        yield Payload("json", f"manifest.json: {name}", text("manifest.json", raw, sealed=False), expect=BACK)
        yield Payload("json", f"state.json: {name}", text("state.json", raw), expect=BACK)
        yield Payload("json", f"snapshot index: {name}", text("payload/.snapshot_metadata", raw), expect=BACK)
    yield from _name_payloads()


def _listed_payloads() -> Iterator[Payload]:
    """Files that a manifest lists, by names that lead elsewhere or are none."""
    names = (
        "../../../secret/bashrc",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\0b",
        "x" * 5000,
        "state.json/",
        "./state.json",
        "payload//x",
        "ＳＴＡＴＥ.json",
        "state.jso\u006e\u0303",
        "\ud800",
        "a\nb",
        "\x1b]0;title\x07\x1b[2J",
    )
    for name in names:
        change = _listed(name)
        yield Payload("manifest", f"lists {name[:24]!r}", manifest(change), expect=BACK)


def _field_payloads() -> Iterator[Payload]:
    """Fields of a manifest with values of another kind or size than is written there."""
    fields: dict[str, Any] = {
        "backend": "pickle",
        "backend ": "../x",
        "sequence": 10**4000,
        "sequence ": -1,
        "sequence  ": True,
        "threads": 10**30,
        "versions": {"torch": "\x1b[31m" + "x" * MIB, "python": _nested(800, "[", "]")},
        "components": [1],
        "counters": {"env_steps": [300]},
        "counters ": {"env_steps": "300"},
        "files": {"state.json": 5},
        "files ": {"state.json": {"bytes": -1}},
        "extra": _nested(900, "[", "]"),
        "device": "x" * MIB,
        "git": "$(touch executed)",
        "schema": 10**4000,
        "schema ": _nested(900, "[", "]"),
    }
    for name, value in fields.items():
        yield Payload(
            "manifest",
            f"{name.strip()} is {str(value)[:16]!r}",
            manifest(lambda found, name=name, value=value: found | {name.strip(): value}),
        )


def _name_payloads() -> Iterator[Payload]:
    """Folders and files of a checkpoint that are called like nothing we write."""
    for step in (
        "step-999999999999999999",
        "step-1٣",
        "step-0300",
        "step-400.r1",
        "step-400.tmp-1-ab",
        "step-4\n00",
        "step-400.tmp-1-\x1b[2J",
        "x\x1b]0;title\x07",
    ):
        yield Payload("manifest", f"a folder called {step!r}", _copied(step))
    yield Payload("manifest", "a file called like an escape sequence", _extra("a\x1b]0;title\x07\nb"), expect=BACK)
    yield Payload("manifest", "a file that is no text", _extra(b"\xff\xfe"), expect=BACK)


def _listed(name: str) -> Change:
    def apply(fields: dict[str, Any]) -> None:
        fields["files"][name] = {"bytes": 19, "sha256": "0" * 64}

    return apply


def _copied(name: str) -> Callable[[Path], None]:
    return lambda run: shutil.copytree(newest(run), run / "ckpt" / name)


def _extra(name: str | bytes) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        with open(os.path.join(os.fsencode(newest(run)), os.fsencode(name)), "wb") as file:
            file.write(b"x")

    return apply


def json_texts() -> list[tuple[str, bytes]]:
    """JSON that is made to hurt whoever reads it."""
    return [
        ("a million lists deep", b"[" * 10**6 + b"]" * 10**6),
        ("a million objects deep", b'{"a":' * 10**6 + b"1" + b"}" * 10**6),
        ("nine hundred deep", b'{"schema": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}"),
        ("NaN", b'{"schema": 2, "x": NaN}'),
        ("Infinity", b'{"schema": 2, "x": -Infinity}'),
        ("1e999", b'{"schema": 2, "x": 1e999}'),
        ("an integer of 5,000 digits", b'{"schema": 2, "x": ' + BIG_INT.encode() + b"}"),
        ("an integer of a million digits", b'{"schema": 2, "x": ' + b"9" * 10**6 + b"}"),
        ("a key given twice", b'{"schema": 2, "schema": 2}'),
        ("a lone surrogate", b'{"schema": "\\ud800"}'),
        ("bytes that are no text", b'{"schema": "\xff\xfe\x00"}'),
        ("UTF-16", '{"schema": 2}'.encode("utf-16")),
        ("a byte-order mark", b'\xef\xbb\xbf{"schema": 2}'),
        ("a NUL", b'{"schema": 2}\0'),
        ("a second document", b'{"schema": 2} {"schema": 2}'),
        ("a text of 8 MB", b'{"schema": "' + b"\\u0041" * (8 * MIB // 6) + b'"}'),
        ("three million empty lists", b"[" + b"[]," * 3_000_000 + b"1]"),
        ("a million keys", b"{" + b",".join(b'"%d":{}' % n for n in range(10**6)) + b"}"),
        ("YAML", b"!!python/object/apply:os.system ['touch executed']"),
        ("escape sequences", b'{"schema": "\\u001b]0;title\\u0007"}'),
    ]
