"""The two ways rows of bytes are laid out in files: by torchsnapshot, or as one file of torch.save."""

import asyncio
import hashlib
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Protocol, cast

import torch
from torch import Tensor

from runner.checkpoint.manifest import parse_json, read_small
from runner.checkpoint.rows import Tensors
from runner.spec import CheckpointError

_LENGTHS_AT = 26
"""Where the header of a file in a ZIP archive says how long its last two fields are, which its bytes come after."""


class Backend(Protocol):
    """Writes rows of bytes, one or more and none of them empty, into an empty folder; reads them into rows given.

    A write returns when every byte has been handed to the file system, because the rows may change afterwards. It
    returns SHA-256 digests of what files are to hold, by path, worked out from memory and not from what was written.
    """

    def write(self, folder: Path, rows: Tensors) -> dict[str, str]: ...

    def read(self, folder: Path, rows: Tensors) -> None: ...


class TorchBackend:
    """One file ``tensors.pt``, read with ``weights_only`` and never otherwise."""

    FILE = "tensors.pt"

    def write(self, folder: Path, rows: Tensors) -> dict[str, str]:
        with open(folder / self.FILE, "wb") as file:
            hashing = _HashingFile(file)
            torch.save(rows, cast(IO[bytes], hashing))  # torch only writes and flushes
        return {self.FILE: hashing.sha256.hexdigest()}

    def read(self, folder: Path, rows: Tensors) -> None:
        path = folder / self.FILE
        entries = _entries(path)
        # Without their bytes, which would be mapped as memory of the process: read below, straight into their places.
        stored = torch.load(path, map_location="meta", weights_only=True)
        if not isinstance(stored, dict) or list(stored) != list(rows):
            raise ValueError("the rows in the file are not those of the skeleton")
        for name, row in rows.items():
            if not isinstance(stored[name], Tensor) or (stored[name].dtype, stored[name].shape) != (
                row.dtype,
                row.shape,
            ):
                raise ValueError(f"{name}: not a row of {len(row)} bytes")
        # torch numbers them in the order in which it meets them.
        for number, row in enumerate(rows.values()):
            _read_into(path, _place(path, entries[f"data/{number}"], len(row)), row)


def _read_into(path: Path, place: int, row: Tensor) -> None:
    """Fill ``row`` with the bytes from ``place`` on: nothing of them is in memory besides, be it as large as it may."""
    with open(path, "rb", buffering=0) as file:
        file.seek(place)
        view = memoryview(row.numpy().data).cast("B")
        while view:
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{path.name} ends too early")
            view = view[count:]


class _HashingFile:
    """Hashes what passes through it into ``file``."""

    def __init__(self, file: IO[bytes]) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file

    def write(self, raw: bytes) -> int:
        self.sha256.update(raw)
        return self._file.write(raw)

    def flush(self) -> None:
        self._file.flush()


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    """What is in an archive of torch.save, by name."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("torch.save does not compress; this file may unpack to any size")
    return entries


def _place(path: Path, entry: zipfile.ZipInfo, size: int) -> int:
    """Where in the archive the bytes of an entry begin."""
    if entry.file_size != size:
        raise ValueError(f"{entry.filename:.80} has {entry.file_size} bytes instead of {size}")
    with open(path, "rb") as file:
        file.seek(entry.header_offset + _LENGTHS_AT)
        return file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))


class TorchSnapshotBackend:
    """One file per row, holding its plain bytes, under ``0/state/``."""

    def write(self, folder: Path, rows: Tensors) -> dict[str, str]:
        _away_from_event_loops(lambda: _take(folder, rows))
        return {f"0/state/{path.name}": _digest(path, rows) for path in (folder / "0/state").iterdir()}

    def read(self, folder: Path, rows: Tensors) -> None:
        parts = check_snapshot(folder, {name: len(row) for name, row in rows.items()})
        # Not by torchsnapshot, which reads whole files into memory before it copies what is in them.
        for name, row in rows.items():
            for begin, end, path in parts[name]:
                _read_into(path, 0, row[begin:end])


def _digest(path: Path, rows: Tensors) -> str:
    """What the file ``path`` is to hold: a row, or where torchsnapshot split it, the part from ``_<first byte>`` on."""
    name, _, begin = path.name.partition("_")
    part = rows[name][int(begin) :][: path.stat().st_size] if begin else rows[name]
    return hashlib.sha256(part.numpy().data).hexdigest()


def _torchsnapshot() -> Any:
    # With batching, small tensors share a file, and a damaged one restores in part without an error.
    os.environ["TORCHSNAPSHOT_DISABLE_BATCHING"] = "1"
    # It need not look up how much memory there is for copies of tensors that lie in memory as they are written.
    os.environ.setdefault("TORCHSNAPSHOT_PER_RANK_MEMORY_BUDGET_BYTES", str(2**30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torchsnapshot
        import torchsnapshot.pg_wrapper
    return torchsnapshot


def _take(folder: Path, rows: Tensors) -> None:
    torchsnapshot = _torchsnapshot()
    with _alone(torchsnapshot.pg_wrapper):
        torchsnapshot.Snapshot.take(str(folder), {"state": torchsnapshot.StateDict(**rows)})


@contextmanager
def _alone(module: Any) -> Iterator[None]:
    """Let torchsnapshot not know that this process is one of several: it would wait for the others to take part."""
    known = module.dist
    module.dist = SimpleNamespace(is_initialized=lambda: False)
    try:
        yield
    finally:
        module.dist = known


def _away_from_event_loops(work: Callable[[], None]) -> None:
    """Run ``work`` here, or on a thread where this one runs an event loop (notebooks): torchsnapshot needs its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


_Parts = list[tuple[int, int, Path]]
"""From which byte to which a row is in which file."""


def check_snapshot(folder: Path, sizes: Mapping[str, int]) -> dict[str, _Parts]:
    """Refuse a snapshot whose own index says anything but "these rows of bytes, in these files of just that size".

    torchsnapshot would follow that index anywhere: to other folders, to pickled objects, to tensors of any size.
    """
    index = parse_json(read_small(folder, ".snapshot_metadata"), ".snapshot_metadata")
    entries = index["manifest"]
    if index["world_size"] != 1 or set(entries) != {"0/state", *(f"0/state/{name}" for name in sizes)}:
        raise ValueError("the snapshot's index does not list the tensors of the skeleton")
    if entries["0/state"] != {"type": "dict", "keys": list(sizes)}:
        raise ValueError("the snapshot's index is not a plain dict of tensors")
    return {name: _check_entry(folder, name, entries[f"0/state/{name}"], size) for name, size in sizes.items()}


def _check_entry(folder: Path, name: str, entry: dict[str, Any], size: int) -> _Parts:
    if entry["type"] == "ChunkedTensor":
        chunks = [(chunk["offsets"], chunk["sizes"], chunk["tensor"]) for chunk in entry["chunks"]]
    else:
        chunks = [([0], [size], entry)]
    begin, parts = 0, []
    for offsets, sizes, tensor in chunks:
        location = f"0/state/{name}" + (f"_{begin}" if entry["type"] == "ChunkedTensor" else "")
        expected: dict[str, Any] = {"type": "Tensor", "location": location, "serializer": "buffer_protocol"}
        expected |= {"dtype": "torch.uint8", "shape": sizes, "replicated": False, "byte_range": None}
        if offsets != [begin] or len(sizes) != 1 or tensor != expected:
            raise ValueError(f"{name}: the snapshot's index is not what torchsnapshot writes")
        if (folder / location).stat().st_size != sizes[0]:
            raise ValueError(f"{name}: the file does not have {sizes[0]} bytes")
        parts.append((begin, begin + sizes[0], folder / location))
        begin += sizes[0]
    if begin != size or (entry["dtype"], entry["shape"]) != ("torch.uint8", [size]):
        raise ValueError(f"{name}: the snapshot holds {begin} bytes instead of {size}")
    return parts


BACKENDS: dict[str, Backend] = {"torchsnapshot": TorchSnapshotBackend(), "torch": TorchBackend()}
DEFAULT_BACKEND = "torchsnapshot"


def choose_backend(given: str | None) -> str:
    """The backend that was asked for, here or by ``CKPT_BACKEND``, else the default one."""
    backend = given or os.environ.get("CKPT_BACKEND") or DEFAULT_BACKEND
    if backend not in BACKENDS:
        choices = " or ".join(BACKENDS)
        raise CheckpointError(f"CKPT_BACKEND={backend}: there is no such backend; choose {choices}")
    return backend
