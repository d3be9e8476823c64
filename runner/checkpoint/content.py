"""What one checkpoint holds: taken from the state of a run, written into a folder, read back from there."""

import functools
import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runner.checkpoint.backends import BACKENDS
from runner.checkpoint.manifest import (
    SCHEMA,
    DamagedError,
    check_size,
    digest_of,
    list_files,
    parse_json,
    read_small,
)
from runner.checkpoint.rows import TensorMeta, Tensors, Unpacking, pack
from runner.checkpoint.tree import flatten, unflatten
from runner.spec import Deferred

STATE = "state.json"
PAYLOAD = "payload"
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64
MAX_SIZE = 2**48
_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_LIBRARIES = ("torch", "tensordict", "torchsnapshot", "numpy", "gymnasium")


class Content(NamedTuple):
    """A state taken apart, and what the manifest says about it; ``rows`` are a copy of its tensors' bytes, if any."""

    skeleton: Any
    tensors: Tensors
    fields: dict[str, Any]
    rows: Tensors | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def take(state: Mapping[str, Any], fields: Mapping[str, Any]) -> Content:
    """Take ``state`` apart; its tensors go on sharing their memory with the run."""
    skeleton, tensors = flatten(dict(state))
    own = {
        "schema": SCHEMA,
        "components": list(state),
        "versions": dict(versions()),
        "threads": torch.get_num_threads(),
        "device": ",".join(sorted({str(tensor.device) for tensor in tensors.values()})) or "cpu",
    }
    return Content(skeleton, tensors, {**own, **fields})


class Copies:
    """Copies of what is in a run's tensors, in memory that is used again for the next one."""

    def __init__(self) -> None:
        self._rows: Tensors = {}

    def copy(self, content: Content) -> Content:
        """``content`` with rows of its own, which the next call overwrites."""
        self._rows = pack(content.tensors, self._rows)
        return content._replace(rows=self._rows)


class Written(NamedTuple):
    """What is in a folder: digests of what its files are to hold, by path, and the work that was done for it."""

    digests: dict[str, str]
    deferred: list[Deferred]


def write(folder: Path, content: Content, backend: str) -> Written:
    """Write the state's files into the empty ``folder``, and do what was left to be done at the time of writing."""
    deferred: list[Deferred] = []

    def work_out(value: Any) -> Any:  # JSON asks about what it does not know
        if type(value) is not Deferred:
            raise TypeError(f"{type(value).__name__} cannot be saved")
        deferred.append(value)
        return value.work()

    metas = {name: [str(part.dtype).removeprefix("torch."), list(part.shape)] for name, part in content.tensors.items()}
    encoded = json.dumps({"components": content.skeleton, "tensors": metas}, allow_nan=False, default=work_out)
    raw = encoded.encode()
    check_size(raw, "the state besides its tensors")
    (folder / STATE).write_bytes(raw)
    (folder / PAYLOAD).mkdir()
    rows = pack(content.tensors) if content.rows is None else content.rows
    digests = BACKENDS[backend].write(folder / PAYLOAD, rows) if rows else {}
    paths = {f"{PAYLOAD}/{file}": digest for file, digest in digests.items()}
    return Written({STATE: digest_of(raw), **paths}, deferred)


def read(folder: Path, manifest: dict[str, Any], into: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state in a folder whose files are those of ``manifest``."""
    content = parse_json(read_small(folder, STATE), STATE)
    try:
        if len(content["tensors"]) > MAX_TENSORS:
            raise ValueError(f"declares more than {MAX_TENSORS} tensors")
        metas = {name: _meta(*entry) for name, entry in content["tensors"].items()}
        stored_bytes = sum(size for name, size in list_files(folder).items() if name.startswith(f"{PAYLOAD}/"))
        declared_bytes = sum(meta.nbytes for meta in metas.values())
        if declared_bytes > stored_bytes:
            raise ValueError(f"declares tensors of {declared_bytes} bytes, where {stored_bytes} are stored")
        tensors = _read_tensors(folder / PAYLOAD, metas, into, manifest["backend"])
        state = unflatten(content["components"], tensors)
        if not isinstance(state, dict) or list(state) != manifest["components"]:
            raise ValueError("its components are not those of the manifest")
    except Exception as error:  # whatever a file made up to do harm may raise; it is refused, and the next one tried
        raise DamagedError(STATE, f"cannot be read back: {type(error).__name__}: {error}".splitlines()[0]) from error
    return state


def _read_tensors(folder: Path, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor], backend: str) -> Tensors:
    unpacking = Unpacking(metas, into)
    if unpacking.rows:
        BACKENDS[backend].read(folder, unpacking.rows)
    return unpacking.finish()


def _meta(dtype: str, shape: list[int]) -> TensorMeta:
    # Looked up here and not in torch, which imports what it is asked for by some other names.
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size < MAX_SIZE for size in shape):
        raise ValueError(f"no tensor of type {dtype!r:.40} has the shape {shape!r:.40}")
    return TensorMeta(_DTYPES[dtype], tuple(shape))


@functools.cache
def versions() -> Mapping[str, str]:
    """The libraries that a run's numbers depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
