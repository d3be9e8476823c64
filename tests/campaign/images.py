"""A state as the bytes of its parts, read without any code of the checkpoints: what must be equal, bit for bit."""

import hashlib
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runner.spec import Deferred

Image = dict[str, bytes]


def image_of(trainer: Any, state: Mapping[str, Any] | None = None) -> Image:
    """Everything a resumed run is made of: the state of each part, and the rows of the replay buffer themselves."""
    image = dict(_parts(trainer.state_dict() if state is None else state, ""))
    storage = getattr(trainer.source, "storage", None)
    for key, field in getattr(storage, "fields", {}).items():
        image.update(_parts(field[: storage.filled_rows], f"/rows/{key}"))
    return image


def image_of_state(state: Mapping[str, Any]) -> Image:
    """The same of a state that no trainer has."""
    return dict(_parts(state, ""))


def _parts(value: Any, path: str) -> Iterator[tuple[str, bytes]]:
    if isinstance(value, Mapping):
        yield path, f"dict {list(value)}".encode()
        for key, part in value.items():
            yield from _parts(part, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        yield path, f"{type(value).__name__} {len(value)}".encode()
        for index, part in enumerate(value):
            yield from _parts(part, f"{path}/{index}")
    elif isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        yield path, f"{value.dtype} {tuple(value.shape)} ".encode() + bytes(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray | np.generic):
        yield path, f"numpy {value.dtype} {np.shape(value)} ".encode() + np.asarray(value).tobytes()
    elif isinstance(value, float):
        yield path, b"float " + struct.pack(">d", value)
    elif isinstance(value, Deferred):
        yield path, b"worked out by the writer"
    else:
        yield path, f"{type(value).__name__} {value!r}".encode()


def digest(image: Image, leaving_out: str = "/nothing") -> str:
    """One short text that is equal for equal images only; parts whose path begins with ``leaving_out`` do not count."""
    parts = hashlib.sha256()
    for path in sorted(path for path in image if not path.startswith(leaving_out)):
        parts.update(f"{len(path)} {path} {len(image[path])} ".encode() + image[path])
    return parts.hexdigest()


def files_under(folder: Path) -> dict[str, tuple[str, str]]:
    """Kind and content of everything under ``folder``, by path; nothing is opened but regular files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = os.lstat(path).st_mode
        if stat.S_ISREG(mode):
            found[str(path.relative_to(folder))] = "file", hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(mode):
            found[str(path.relative_to(folder))] = "link", os.readlink(path)
        else:
            found[str(path.relative_to(folder))] = "other", stat.filemode(mode)[0]
    return found
