"""Indexes and archives, in sealed checkpoints, that send whoever reads them elsewhere or unpack to any size."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.campaign.hostile import SECRET, Payload
from tests.campaign.hostile_seal import Change, text

BACK = ("fell back",)
MIB = 2**20


def snapshot_payloads() -> Iterator[Payload]:
    """Indexes that tell torchsnapshot to look elsewhere, and archives that might be unpacked elsewhere."""
    changes: dict[str, dict[str, Any]] = {
        "a location above": {"location": "../../../../secret/bashrc"},
        "an absolute location": {"location": "/etc/passwd"},
        "an address": {"location": "s3://evil/x"},
        "a range of bytes": {"byte_range": [0, 2**40]},
        "a pickled object": {"type": "object", "obj_type": "torch_save", "serializer": "torch_save"},
        "torch.save": {"serializer": "torch_save"},
        "a primitive": {"type": "primitive", "serialized_value": "x"},
        "another type": {"dtype": "torch.qint8"},
        "a huge shape": {"shape": [2**62]},
        "no shape": {"shape": None},
        "a DTensor": {"type": "DTensor"},
        "shards": {"type": "ShardedTensor", "shards": []},
        "chunks of nothing": {"type": "ChunkedTensor", "chunks": []},
    }
    for name, change in changes.items():
        yield Payload("snapshot", name, _index(lambda index, change=change: _first(index).update(change)), expect=BACK)
    yield Payload("snapshot", "a world of two", _index(lambda index: index.update(world_size=2)), expect=BACK)
    yield Payload("snapshot", "one more entry", _index(_one_more), expect=BACK)
    yield Payload("snapshot", "a version to be printed", _index(lambda index: index.update(version="\x1b[2J" * MIB)))
    twice = text("payload/.snapshot_metadata", _given_twice)
    yield Payload("snapshot", "keys that JSON and YAML read differently", twice, expect=BACK)
    for name, make in _ARCHIVES.items():
        harmless = ("harmless",) if name == "65,000 entries" else ()
        yield Payload("archive", name, text("payload/tensors.pt", make), template="torch", expect=BACK + harmless)


def _index(change: Change) -> Callable[[Path], None]:
    def changed(raw: bytes) -> bytes:
        index = json.loads(raw)
        change(index)
        return json.dumps(index).encode()

    return text("payload/.snapshot_metadata", changed)


def _first(index: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in index["manifest"].values() if entry["type"] != "dict")


def _one_more(index: dict[str, Any]) -> None:
    index["manifest"]["0/state/evil"] = _first(index) | {"location": f"../../../../{SECRET}/bashrc"}


def _given_twice(raw: bytes) -> bytes:
    return raw.replace(b'"location"', b'"location": "../../../../secret/bashrc", "location"', 1)


def _rewritten(raw: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], method: int = 0) -> bytes:
    """The archive with its entries changed; ``torch.load`` still takes it for one of its own."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(out, "w", method) as new:
        for entry in archive.infolist():
            for name, content in change(entry.filename, archive.read(entry)):
                new.writestr(name, content, method)
    return out.getvalue()


def _bomb(name: str, content: bytes) -> list[tuple[str, bytes]]:
    return [(name, content + b"\0" * 2**29 if name.endswith("data.pkl") else content)]


def _huge_storage(raw: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"x": torch.zeros(1).expand(2**40)}, file)
    return file.getvalue()


_ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "a compressed bomb": lambda raw: _rewritten(raw, _bomb, zipfile.ZIP_DEFLATED),
    "a name above": lambda raw: _rewritten(raw, lambda name, content: [(name, content), ("../../../secret/x", b"x")]),
    "an absolute name": lambda raw: _rewritten(raw, lambda name, content: [(name, content), ("/tmp/x", b"x")]),
    "every name twice": lambda raw: _rewritten(raw, lambda name, content: [(name, content), (name, b"x")]),
    "names that are long": lambda raw: _rewritten(raw, lambda name, content: [(name, content), ("x" * 60_000, b"")]),
    "TorchScript": lambda raw: _rewritten(
        raw,
        lambda name, content: [
            (name, content),
            (f"{name.split('/')[0]}/constants.pkl", b"x"),
            (f"{name.split('/')[0]}/code/x.py", b"import os"),
        ],
    ),
    "something before it": lambda raw: b"#!/bin/sh\ntouch executed\n" + raw,
    "an expanded tensor": _huge_storage,
    "the first half": lambda raw: raw[: len(raw) // 2],
    "65,000 entries": lambda raw: _rewritten(
        raw,
        lambda name, content: [
            (name, content),
            *((f"{name}.{n}", b"") for n in range(65_000 if name.endswith("data.pkl") else 0)),
        ],
    ),
    "nothing": lambda raw: b"",
    "an empty archive": lambda raw: b"PK\x05\x06" + bytes(18),
}
