"""A checkpoint folder's manifest: what every file in it must be, so that damage and tampering are noticed."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.spec import place_of
from runner.text import legible, strict_json

MANIFEST = "manifest.json"
SCHEMA = 2
MAX_JSON_BYTES = 64 * 2**20
MAX_ITEMS = 500_000
"""Of lists and objects in a JSON file: each takes a hundred times the memory of the bytes it is written in."""
MAX_FILES = 100_000
MAX_SEQUENCE = 2**62
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "backend": str,
    "components": list,
    "counters": dict,
    "device": str,
    "extra": dict,
    "files": dict,
    "git": (str, type(None)),
    "sequence": int,
    "threads": int,
    "versions": dict,
}


class DamagedError(Exception):
    """A checkpoint that is not to be used: which of its files, and why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(legible(f"{file}: {reason}"))


def describe(folder: Path, digests: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file under ``folder`` but the manifest, by path; ``digests`` are those known."""
    known = digests or {}
    return {
        name: {"bytes": size, "sha256": known.get(name) or _digest_of_file(folder / name)}
        for name, size in sorted(list_files(folder).items())
        if name != MANIFEST
    }


def list_files(folder: Path) -> dict[str, int]:
    """Sizes of the files under ``folder`` by path; anything but folders and regular files is refused."""
    files: dict[str, int] = {}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        for entry in os.scandir(folder / prefix):
            name, status = prefix + entry.name, entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                waiting.append(f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                files[name] = status.st_size
            else:
                raise DamagedError(name, "not a regular file")
            if len(files) + len(waiting) > MAX_FILES:
                raise DamagedError(name, f"more than {MAX_FILES} files")
    return files


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Write the manifest with a digest of its own; refuses one that could not be read back."""
    raw = _sealed(fields)
    check_size(raw, "the manifest")
    (folder / MANIFEST).write_bytes(raw)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``, itself checked, its files not yet."""
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedError(folder.name, "not a folder")
    raw = read_small(folder, MANIFEST)
    fields = parse_json(raw, MANIFEST)
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else None
        raise DamagedError(MANIFEST, f"schema {found!r:.40}, where this version reads {SCHEMA}")
    if raw != _sealed({key: value for key, value in fields.items() if key != "digest"}):
        raise DamagedError(MANIFEST, "its digest does not fit its content")
    for key, kind in _FIELDS.items():
        if not isinstance(fields.get(key), kind):
            raise DamagedError(MANIFEST, f"{key} is missing or of the wrong type")
    if not all(isinstance(version, str) for version in fields["versions"].values()):
        raise DamagedError(MANIFEST, "its versions are of the wrong type")
    if not 0 <= fields["sequence"] < MAX_SEQUENCE:
        raise DamagedError(MANIFEST, "its sequence is out of range")
    _check_name(folder, fields["counters"])
    return fields


def verify(folder: Path, with_hashes: bool = True) -> dict[str, Any]:
    """The manifest of a folder that is exactly what its manifest says.

    Raises:
        DamagedError: naming the file and what is wrong with it.
    """
    try:
        manifest = read_manifest(folder)
        found = list_files(folder)
        _check_listing(manifest["files"], found)
        for name, entry in manifest["files"].items() if with_hashes else ():
            if _digest_of_file(folder / name) != entry.get("sha256"):
                raise DamagedError(name, "its SHA-256 is not the one in the manifest")
    except OSError as error:
        name = os.path.relpath(error.filename or folder, folder)
        raise DamagedError(folder.name if name == "." else name, error.strerror or str(error)) from error
    return manifest


def _check_name(folder: Path, counters: dict[str, Any]) -> None:
    step = folder.name.split(".")[0].removeprefix("step-")
    if step != str(place_of(counters)):
        raise DamagedError(MANIFEST, f"is of step {place_of(counters)!r:.40}, not {step}")


def _check_listing(expected: dict[str, Any], found: dict[str, int]) -> None:
    for name, entry in expected.items():
        if name not in found:
            raise DamagedError(name, "is missing")
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if found[name] != size:
            raise DamagedError(name, f"has {found[name]} bytes instead of {size!r:.40}")
    extra = found.keys() - expected.keys() - {MANIFEST}
    if extra:
        raise DamagedError(min(extra), "is not in the manifest")


def read_small(folder: Path, name: str) -> bytes:
    """The bytes of a regular file of at most 64 MiB."""
    try:
        status = os.lstat(folder / name)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise DamagedError(name, reason) from None
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(name, "not a regular file")
    if status.st_size > MAX_JSON_BYTES:
        raise DamagedError(name, f"has {status.st_size} bytes, more than {MAX_JSON_BYTES}")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise DamagedError(name, str(error.strerror)) from None


def check_size(raw: bytes, what: str) -> None:
    """Raise ``ValueError`` for JSON that :func:`parse_json` would not take for its size."""
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"{what} has {len(raw)} bytes, more than {MAX_JSON_BYTES}")
    if raw.count(b",") > MAX_ITEMS:
        raise ValueError(f"{what} has more than {MAX_ITEMS} items")


def parse_json(raw: bytes, name: str) -> Any:
    """JSON without its surprises: no repeated keys, no nan or infinity, no endless nesting, not too much of it."""
    try:
        check_size(raw, "it")
        return strict_json(raw)
    except RecursionError:
        raise DamagedError(name, "is nested too deeply") from None
    except ValueError as error:
        raise DamagedError(name, f"is not JSON: {error}") from None


def _sealed(fields: dict[str, Any]) -> bytes:
    """The one way to write these fields, ending in a digest of all others."""
    raw = json.dumps(fields, sort_keys=True, allow_nan=False).encode()
    return raw[:-1] + f', "digest": "{digest_of(raw)}"}}\n'.encode()


def digest_of(raw: bytes | memoryview) -> str:
    """SHA-256 of ``raw`` in hex."""
    return hashlib.sha256(raw).hexdigest()


def _digest_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
