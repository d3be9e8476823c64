"""The small JSON file that says what is in a dataset's folder; nobody vouches for it."""

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict.utils import NestedKey

from runner.data.journal import sync_names
from runner.spec import EnvSpec
from runner.text import legible, strict_json

HEADER = "dataset.json"
SCHEMA = 1
MAX_HEADER_BYTES = 2**20
MAX_FIELDS = 256
MAX_DIMENSIONS = 32
MAX_ROWS = 2**48
_TYPES = "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64".split()
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _TYPES}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}(\.[A-Za-z_][A-Za-z0-9_]{0,99}){0,3}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class DatasetError(ValueError):
    """A dataset that is not to be used: which, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"dataset {legible(str(path))}: {legible(reason)}")


@dataclass(frozen=True)
class Field:
    """One column: the type and shape of an entry of a row, and the digest of the file once it is closed."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str | None = None

    @property
    def nbytes(self) -> int:
        """Of one row."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """What a dataset holds; ``rows`` is ``None`` while it is being written, or where its writer was killed."""

    spec: Mapping[str, Any]
    about: Mapping[str, Any]
    fields: Mapping[str, Field]
    rows: int | None

    def write(self, folder: Path) -> None:
        """Put it in place of the one there in one step, safely on the disk."""
        content = {"schema": SCHEMA, **asdict(self)}
        temporary = folder / f".{HEADER}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with open(temporary, "xb") as file:
                file.write(_sealed(content))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / HEADER)
        finally:
            temporary.unlink(missing_ok=True)
        sync_names(folder)


def file_of(name: str) -> str:
    """The file of the field ``next.reward``."""
    return f"{name}.rows"


def name_of_field(key: NestedKey) -> str:
    """``next.reward`` for ``("next", "reward")``; ``ValueError`` for one that could not be read back."""
    parts = [key] if isinstance(key, str) else [str(part) for part in key]
    name = ".".join(parts)
    if not _NAME.fullmatch(name) or len(name.split(".")) != len(parts):
        raise ValueError(f"no entry called {key!r:.80} can be in a dataset: its names are letters, digits and _")
    return name


def key_of_field(name: str) -> NestedKey:
    """The key that :func:`name_of_field` made a name of."""
    parts = name.split(".")
    return parts[0] if len(parts) == 1 else tuple(parts)


def describe_spec(spec: EnvSpec) -> dict[str, Any]:
    """An environment's spec as JSON has it: dtypes by name, bounds as lists of numbers or ``inf``, ``-inf``."""
    return {name: _plain(value) for name, value in asdict(spec).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def read_header(folder: Path) -> Header:
    """The checked header in ``folder``.

    Raises:
        DatasetError: where there is none, or one that no writer of ours wrote.
    """
    try:
        raw = _read(folder / HEADER)
        content = strict_json(raw)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, dict) else None
            raise ValueError(f"schema {found!r:.40}, where this version reads {SCHEMA}")
        if raw != _sealed({key: value for key, value in content.items() if key != "digest"}):
            raise ValueError("its digest does not fit its content")
        return _checked(content)
    except FileNotFoundError:
        raise DatasetError(folder, f"there is no {HEADER} in it") from None
    except OSError as error:
        raise DatasetError(folder, f"{HEADER}: {error.strerror}") from None
    except RecursionError:
        raise DatasetError(folder, f"{HEADER}: it is nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(folder, f"{HEADER}: {error if isinstance(error, ValueError) else 'is malformed'}") from None


def _checked(content: Mapping[str, Any]) -> Header:
    spec, about, fields, rows = (content[name] for name in ("spec", "about", "fields", "rows"))
    if not isinstance(spec, dict) or not isinstance(about, dict) or not isinstance(fields, dict):
        raise TypeError
    if rows is not None and not (type(rows) is int and 0 <= rows < MAX_ROWS):
        raise ValueError(f"{rows!r:.40} is no number of rows")
    if not 0 < len(fields) <= MAX_FIELDS:
        raise ValueError(f"{len(fields)} fields, where there are 1 to {MAX_FIELDS}")
    return Header(
        spec, about, {name: read_field(name, entry, rows is not None) for name, entry in fields.items()}, rows
    )


def read_field(name: str, entry: Mapping[str, Any], is_closed: bool) -> Field:
    """The checked entry of one column, which has a digest once it is closed; ``ValueError`` for any other."""
    dtype, shape, sha256 = entry["dtype"], entry["shape"], entry["sha256"]
    if not _NAME.fullmatch(name):
        raise ValueError(f"no field is called {name!r:.80}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name}: there is no type {dtype!r:.40}")
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 < size < 2**32 for size in shape):
        raise ValueError(f"{name}: no row has the shape {shape!r:.40}")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256) if is_closed else sha256 is None):
        raise ValueError(f"{name}: {sha256!r:.40} is no SHA-256")
    return Field(dtype, tuple(shape), sha256)


def open_regular(path: Path) -> int:
    """A descriptor to read a regular file by, which no link stands for; ``ValueError`` for anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is not a regular file")
    return descriptor


def _read(path: Path) -> bytes:
    descriptor = open_regular(path)
    with open(descriptor, "rb") as file:
        raw = file.read(MAX_HEADER_BYTES + 1)
    if len(raw) > MAX_HEADER_BYTES:
        raise ValueError(f"it has more than {MAX_HEADER_BYTES} bytes")
    return raw


def _sealed(content: Mapping[str, Any]) -> bytes:
    """The one way to write these fields, ending in a digest of all others."""
    raw = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return raw[:-1] + f', "digest": "{hashlib.sha256(raw).hexdigest()}"}}\n'.encode()
