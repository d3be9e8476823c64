"""The two ways a checkpoint's tensors are laid out in files: by torchsnapshot, or as one file of torch.save."""

import asyncio
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


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
    """

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None: ...

    def read(self, folder: Path, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors: ...


class TorchBackend:
    """One file ``tensors.pt``, read with ``weights_only`` and never otherwise."""

    FILE = "tensors.pt"

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        torch.save({name: _compact(tensor) for name, tensor in tensors.items()}, folder / self.FILE)

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


def _compact(tensor: Tensor) -> Tensor:
    """A CPU tensor that owns exactly its own numbers: torch.save writes the whole storage behind a view."""
    tensor = tensor.cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _refuse_compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("torch.save does not compress; this file may unpack to any size")


class TorchSnapshotBackend:
    """One file per tensor, holding its plain bytes, under ``0/state/``.

    torchsnapshot gets every tensor as a row of bytes: it refuses some types (uint16, float8), pickles others (complex).
    Empty tensors, which it cannot write, have no file.
    """

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        rows = {f"t{index}": _bytes(part.contiguous()) for index, part in enumerate(tensors.values()) if part.numel()}
        if rows:
            _away_from_event_loops(lambda: _take(folder, rows))

    def read(self, folder: Path, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors:
        sizes = {f"t{index}": meta.nbytes for index, meta in enumerate(metas.values()) if meta.nbytes}
        if sizes:
            check_snapshot(folder, sizes)
        out = allocate(metas, into)
        # A tensor that does not lie in one piece is read beside its place and copied there.
        split = {name: metas[name] for name, tensor in out.items() if not tensor.is_contiguous()}
        whole = {**out, **allocate(split, {})}
        rows = {f"t{index}": _bytes(tensor) for index, tensor in enumerate(whole.values()) if tensor.numel()}
        if rows:
            _away_from_event_loops(lambda: _restore(folder, rows))
        for name in split:
            out[name].copy_(whole[name])
        return out


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
