"""A run's checkpoints: a kill at any instant leaves the last good one, and one with anything amiss is never read."""

import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from runner.checkpoint.backends import BACKENDS, TensorMeta
from runner.checkpoint.manifest import (
    MANIFEST,
    MAX_JSON_BYTES,
    SCHEMA,
    DamagedError,
    describe,
    list_files,
    parse_json,
    read_manifest,
    read_small,
    verify,
    write_manifest,
)
from runner.checkpoint.tree import flatten, unflatten
from runner.hook import Interval
from runner.spec import CheckpointError, Progress, StateDict
from runner.types import Every, PositiveInt

logger = logging.getLogger(__name__)

STATE = "state.json"
PAYLOAD = "payload"
_NAME = re.compile(r"step-(0|[1-9]\d{0,18})(?:\.r([1-9]\d{0,5}))?")
_TEMPORARY = re.compile(r"step-.*\.tmp-(\d+)-[0-9a-f]+")
_LIBRARIES = ("torch", "tensordict", "torchsnapshot", "numpy", "gymnasium")


class CheckpointStore:
    """Saves and loads the checkpoints ``ckpt/step-<env_steps>`` of a run.

    Args:
        run: the run's folder, or anything with such a ``path``; a folder even where its name ends in ``.pt``.
        every: how often a checkpoint is due; ``None``: only when asked for.
        keep: how many verified checkpoints stay when older ones are deleted.
        backend: how tensors are stored; ``None``: as ``CKPT_BACKEND`` says, else torchsnapshot. Reading takes either.
    """

    def __init__(
        self,
        run: Any,
        every: Every | None = None,
        keep: PositiveInt = 2,
        backend: Literal["torchsnapshot", "torch"] | None = None,
    ) -> None:
        self.folder = Path(getattr(run, "path", run)) / "ckpt"
        self.keep = keep
        self.backend = backend or os.environ.get("CKPT_BACKEND") or "torchsnapshot"
        if self.backend not in BACKENDS:
            choices = " or ".join(BACKENDS)
            raise CheckpointError(f"CKPT_BACKEND={self.backend}: there is no such backend; choose {choices}")
        self.rejected: list[str] = []
        self._git = getattr(run, "git_sha", None)
        self._interval = Interval({**every}) if every else None
        self._verified: set[str] = set()

    def due(self, progress: Progress) -> bool:
        """Whether the interval came round since this was last asked."""
        return self._interval is not None and self._interval.fires(progress)

    def state_dict(self) -> StateDict:
        return {} if self._interval is None else {"unit": self._interval.unit, **self._interval.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        if self._interval is not None and state.get("unit") == self._interval.unit:
            self._interval.load_state_dict(state)

    def folders(self) -> list[Path]:
        """The checkpoints there are, good or not, newest first; those with an unreadable manifest before all others."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_age, reverse=True)

    def save(
        self, state: Mapping[str, Any], counters: Mapping[str, Any], extra: Mapping[str, Any] | None = None
    ) -> Path:
        """Write ``state`` (component name -> nested state) and return its folder, once it is safely on disk.

        Raises:
            TypeError: for a part that cannot be saved, naming its path.
            CheckpointError: where the file system fails; checkpoints written before stay as they are.
        """
        skeleton, tensors = flatten(dict(state))
        temporary = self.folder / f"step-{counters['env_steps']}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._remove_stale()
            temporary.mkdir(parents=True)
            self._write_content(temporary, skeleton, tensors)
            return self._publish(temporary, {**self._fields(state, tensors, counters), "extra": dict(extra or {})})
        except (OSError, RuntimeError, ValueError, DamagedError) as error:
            raise CheckpointError(f"no checkpoint could be written in {self.folder}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load(self, into: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state and the manifest of the newest checkpoint in which nothing is amiss, bit for bit as it was saved.

        Newer ones that were passed over are warned about, and listed in ``rejected``.

        Args:
            into: tensors by name (``component/key/...``) that are overwritten in place instead of new ones being made.
        """
        self.rejected = []
        for folder in self.folders():
            try:
                manifest = verify(folder)
                state = _read_content(folder, manifest, into or {})
            except DamagedError as damage:
                self.rejected.append(f"checkpoint {folder} is not used: {damage}")
                logger.warning(self.rejected[-1])
                continue
            self._verified.add(folder.name)
            _warn_of_differences(folder, manifest)
            return state, manifest
        tried = "; ".join(self.rejected) or "there is none"
        raise CheckpointError(f"no usable checkpoint in {self.folder}: {tried}")

    def _remove_stale(self) -> None:
        """Remove what killed processes left half-written; this process has nothing under way when it calls this."""
        for path in self.folder.glob("*.tmp-*"):
            match = _TEMPORARY.fullmatch(path.name)
            if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
                shutil.rmtree(path, ignore_errors=True)

    def _write_content(self, folder: Path, skeleton: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        metas = {name: [str(part.dtype).removeprefix("torch."), list(part.shape)] for name, part in tensors.items()}
        raw = json.dumps({"components": skeleton, "tensors": metas}, allow_nan=False).encode()
        if len(raw) > MAX_JSON_BYTES:
            raise ValueError(f"the state besides its tensors has {len(raw)} bytes, more than {MAX_JSON_BYTES}")
        (folder / STATE).write_bytes(raw)
        (folder / PAYLOAD).mkdir()
        BACKENDS[self.backend].write(folder / PAYLOAD, tensors)

    def _fields(
        self, components: Mapping[str, Any], tensors: Mapping[str, Tensor], counters: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "counters": dict(counters),
            "components": list(components),
            "backend": self.backend,
            "versions": _versions(),
            "threads": torch.get_num_threads(),
            "device": ",".join(sorted({str(tensor.device) for tensor in tensors.values()})) or "cpu",
            "git": self._git,
        }

    def _publish(self, temporary: Path, fields: dict[str, Any]) -> Path:
        fields["files"] = describe(temporary)
        existing = self.folders()
        if existing and self._is_same(existing[0], fields):
            return existing[0]
        fields["sequence"] = 1 + max((_sequence(folder) or 0 for folder in existing), default=0)
        write_manifest(temporary, fields)
        _sync(temporary)
        final = self._free_name(fields["counters"]["env_steps"])
        os.rename(temporary, final)
        _sync_one(self.folder)
        verify(final)
        self._verified.add(final.name)
        self._prune(final)
        return final

    def _is_same(self, folder: Path, fields: dict[str, Any]) -> bool:
        """Whether ``folder`` is a good checkpoint of this step with this very content."""
        try:
            manifest = read_manifest(folder)
            same = all(manifest[key] == fields[key] for key in ("counters", "files", "extra"))
            return same and bool(verify(folder))
        except (DamagedError, OSError):
            return False

    def _free_name(self, env_steps: int) -> Path:
        names = [f"step-{env_steps}"] + [f"step-{env_steps}.r{number}" for number in range(1, 1000)]
        return next(self.folder / name for name in names if not os.path.lexists(self.folder / name))

    def _prune(self, newest: Path) -> None:
        """Delete what is older than the ``keep`` newest good checkpoints; an unreadable manifest counts as oldest."""
        good = 0
        for folder in sorted(self.folders(), key=lambda folder: (folder != newest, _sequence(folder) is None)):
            if good >= self.keep:
                # Renamed first, so that a kill halfway leaves no half-deleted checkpoint.
                doomed = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
                os.rename(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)
            else:
                good += self._is_good(folder)

    def _is_good(self, folder: Path) -> bool:
        try:
            verify(folder, with_hashes=folder.name not in self._verified)
        except DamagedError:
            return False
        self._verified.add(folder.name)
        return True


def _read_content(folder: Path, manifest: dict[str, Any], into: Mapping[str, Tensor]) -> dict[str, Any]:
    content = parse_json(read_small(folder, STATE), STATE)
    try:
        metas = {name: _meta(*entry) for name, entry in content["tensors"].items()}
        stored_bytes = sum(size for name, size in list_files(folder).items() if name.startswith(f"{PAYLOAD}/"))
        declared_bytes = sum(meta.nbytes for meta in metas.values())
        if declared_bytes > stored_bytes:
            raise ValueError(f"declares tensors of {declared_bytes} bytes, where {stored_bytes} are stored")
        state = unflatten(content["components"], BACKENDS[manifest["backend"]].read(folder / PAYLOAD, metas, into))
        if not isinstance(state, dict) or list(state) != manifest["components"]:
            raise ValueError("its components are not those of the manifest")
    except Exception as error:  # whatever a file made up to do harm may raise; it is refused, and the next one tried
        raise DamagedError(STATE, f"cannot be read back: {type(error).__name__}: {error}".splitlines()[0]) from error
    return state


def _meta(dtype: str, shape: list[int]) -> TensorMeta:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"no tensor of type {dtype!r:.40} and shape {shape!r:.40}")
    return TensorMeta(kind, tuple(shape))


def _age(folder: Path) -> tuple[bool, int, int, int]:
    sequence = _sequence(folder)
    step, repeat = _NAME.fullmatch(folder.name).groups("0")  # type: ignore[union-attr]
    return sequence is None, sequence or 0, int(step), int(repeat)


def _sequence(folder: Path) -> int | None:
    """A checkpoint's rank in time; steps do not tell, where a second run was started in the same folder."""
    try:
        return int(read_manifest(folder)["sequence"])
    except (DamagedError, OSError):
        return None


def _sync(folder: Path) -> None:
    """Push every file and folder under ``folder`` to the disk, its manifest and itself last."""
    paths = sorted((folder / name for name in list_files(folder)), key=lambda path: path.name == MANIFEST)
    inside = {parent for path in paths for parent in path.parents if parent.is_relative_to(folder)}
    for path in (*paths, *sorted(inside, reverse=True)):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _warn_of_differences(folder: Path, manifest: dict[str, Any]) -> None:
    then = {"torch threads": manifest["threads"], **manifest["versions"]}
    now = {"torch threads": torch.get_num_threads(), **_versions()}
    changed = [f"{name} {then[name]} -> {now[name]}" for name in then if name in now and then[name] != now[name]]
    if changed:
        logger.warning("%s: the run may not go on bit for bit, as there changed %s", folder, ", ".join(changed))
