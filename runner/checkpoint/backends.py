"""The two ways a checkpoint's tensors are laid out in files: by torchsnapshot, or as one file of torch.save."""

import asyncio
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

PACKED = "packed"
LARGE_BYTES = 2**20
"""From this size on a tensor has a file of its own, which is read straight into its place."""


class TensorMeta(NamedTuple):
    """What a tensor's bytes mean."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Backend(Protocol):
    """Writes tensors into an empty folder, and reads them back into ``into`` or into new CPU tensors.

    A write returns when every byte has been handed to the file system, because the tensors go on changing afterwards.
    It returns SHA-256 digests of what files are to hold, by path, worked out from memory and not from what was written.
    """

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]: ...

    def read(self, folder: Path, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors: ...


class TorchBackend:
    """One file ``tensors.pt``, read with ``weights_only`` and never otherwise."""

    FILE = "tensors.pt"

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        with open(folder / self.FILE, "wb") as file:
            hashing = _HashingFile(file)
            compact = {name: _compact(tensor) for name, tensor in tensors.items()}
            torch.save(compact, cast(IO[bytes], hashing))  # torch only writes and flushes
        return {self.FILE: hashing.sha256.hexdigest()}

    def read(self, folder: Path, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors:
        path = folder / self.FILE
        _refuse_compressed(path)
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(stored, dict) or list(stored) != list(metas):
            raise ValueError("the tensors in the file are not those of the skeleton")
        for name, meta in metas.items():
            tensor = stored[name]
            if not isinstance(tensor, Tensor) or (tensor.dtype, tuple(tensor.shape)) != meta:
                raise ValueError(f"{name}: not a {meta.dtype} tensor of shape {meta.shape}")
        out = allocate(metas, into)
        for name, tensor in out.items():
            tensor.copy_(stored[name])
        return out


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


def _compact(tensor: Tensor) -> Tensor:
    """A CPU tensor that owns exactly its own numbers: torch.save writes the whole storage behind a view."""
    tensor = tensor.cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _refuse_compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("torch.save does not compress; this file may unpack to any size")


class TorchSnapshotBackend:
    """Files of plain bytes under ``0/state/``: one for each large tensor, and ``packed`` for all others, in order.

    torchsnapshot gets rows of bytes: it refuses some types of tensors (uint16, float8), pickles others (complex), and
    spends half a millisecond on each. Empty tensors, which it cannot write, are in no row.
    """

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        layout = _lay_out({name: tensor.nbytes for name, tensor in tensors.items()})
        rows = {row: _joined([tensors[name] for name in names]) for row, names in layout.items()}
        if not rows:
            return {}
        _away_from_event_loops(lambda: _take(folder, rows))
        return {f"0/state/{path.name}": _digest(path, rows) for path in (folder / "0/state").iterdir()}

    def read(self, folder: Path, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors:
        layout = _lay_out({name: meta.nbytes for name, meta in metas.items()})
        sizes = {row: sum(metas[name].nbytes for name in names) for row, names in layout.items()}
        if sizes:
            check_snapshot(folder, sizes)
        out = allocate(metas, into)
        straight = {row: out[names[0]] for row, names in layout.items() if row != PACKED}
        straight = {row: tensor for row, tensor in straight.items() if tensor.is_contiguous()}
        rows = {
            row: _bytes(straight[row]) if row in straight else torch.empty(size, dtype=torch.uint8)
            for row, size in sizes.items()
        }
        if rows:
            _away_from_event_loops(lambda: _restore(folder, rows))
        for row in rows.keys() - straight.keys():
            parts = rows[row].split([metas[name].nbytes for name in layout[row]])
            for name, part in zip(layout[row], parts, strict=True):
                # A copy, because the part may begin where no number of its type can.
                out[name].copy_(part.clone().view(metas[name].dtype).reshape(metas[name].shape))
        return out


def _lay_out(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The rows that a snapshot consists of, and the names of the tensors whose bytes each one strings together."""
    layout: dict[str, list[str]] = {}
    for index, (name, size) in enumerate(sizes.items()):
        if size:
            layout.setdefault(PACKED if size < LARGE_BYTES else f"t{index}", []).append(name)
    return layout


def _joined(tensors: list[Tensor]) -> Tensor:
    rows = [_bytes(tensor.cpu().contiguous()) for tensor in tensors]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _digest(path: Path, rows: Tensors) -> str:
    """What the file ``path`` is to hold: a row, or where torchsnapshot split it, the part from ``_<first byte>`` on."""
    name, _, begin = path.name.partition("_")
    part = rows[name][int(begin or 0) :][: path.stat().st_size] if begin else rows[name]
    return hashlib.sha256(memoryview(part.numpy())).hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _torchsnapshot() -> Any:
    # With batching, small tensors share a file, and a damaged one restores in part without an error.
    os.environ["TORCHSNAPSHOT_DISABLE_BATCHING"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import torchsnapshot
    return torchsnapshot


def _take(folder: Path, rows: Tensors) -> None:
    torchsnapshot = _torchsnapshot()
    torchsnapshot.Snapshot.take(str(folder), {"state": torchsnapshot.StateDict(**rows)})


def _restore(folder: Path, rows: Tensors) -> None:
    torchsnapshot = _torchsnapshot()
    state = torchsnapshot.StateDict(**rows)
    torchsnapshot.Snapshot(str(folder)).restore({"state": state})
    if any(state[name].data_ptr() != row.data_ptr() for name, row in rows.items()):
        raise ValueError("torchsnapshot did not restore in place")


def _away_from_event_loops(work: Callable[[], None]) -> None:
    """Run ``work`` here, or on a thread where this one runs an event loop (notebooks): torchsnapshot needs its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(work).result()


def check_snapshot(folder: Path, sizes: Mapping[str, int]) -> None:
    """Refuse a snapshot whose own index says anything but "these rows of bytes, in these files of just that size".

    torchsnapshot would follow that index anywhere: to other folders, to pickled objects, to tensors of any size.
    """
    index = json.loads((folder / ".snapshot_metadata").read_bytes())
    entries = index["manifest"]
    if index["world_size"] != 1 or set(entries) != {"0/state", *(f"0/state/{name}" for name in sizes)}:
        raise ValueError("the snapshot's index does not list the tensors of the skeleton")
    if entries["0/state"] != {"type": "dict", "keys": list(sizes)}:
        raise ValueError("the snapshot's index is not a plain dict of tensors")
    for name, size in sizes.items():
        _check_entry(folder, name, entries[f"0/state/{name}"], size)


def _check_entry(folder: Path, name: str, entry: dict[str, Any], size: int) -> None:
    if entry["type"] == "ChunkedTensor":
        chunks = [(chunk["offsets"], chunk["sizes"], chunk["tensor"]) for chunk in entry["chunks"]]
    else:
        chunks = [([0], [size], entry)]
    begin = 0
    for offsets, sizes, tensor in chunks:
        location = f"0/state/{name}" + (f"_{begin}" if entry["type"] == "ChunkedTensor" else "")
        expected: dict[str, Any] = {"type": "Tensor", "location": location, "serializer": "buffer_protocol"}
        expected |= {"dtype": "torch.uint8", "shape": sizes, "replicated": False, "byte_range": None}
        if offsets != [begin] or len(sizes) != 1 or tensor != expected:
            raise ValueError(f"{name}: the snapshot's index is not what torchsnapshot writes")
        if (folder / location).stat().st_size != sizes[0]:
            raise ValueError(f"{name}: the file does not have {sizes[0]} bytes")
        begin += sizes[0]
    if begin != size or (entry["dtype"], entry["shape"]) != ("torch.uint8", [size]):
        raise ValueError(f"{name}: the snapshot holds {begin} bytes instead of {size}")


def allocate(metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors:
    """The caller's tensors where given, else new ones, to be filled."""
    for name in into.keys() & metas.keys():
        if (into[name].dtype, tuple(into[name].shape)) != metas[name] or into[name].device.type != "cpu":
            raise ValueError(f"{name}: cannot restore {metas[name]} into {into[name].dtype} {tuple(into[name].shape)}")
    return {
        name: into[name].detach() if name in into else torch.empty(meta.shape, dtype=meta.dtype)
        for name, meta in metas.items()
    }


BACKENDS: dict[str, Backend] = {"torchsnapshot": TorchSnapshotBackend(), "torch": TorchBackend()}
