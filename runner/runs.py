"""A run's folder and its ``run.json``; knows nothing of torch, so that runs can be listed and resumed at once."""

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import secrets
import socket
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
SCHEMA = 1
MAX_BYTES = 4 * 2**20
STATUSES = ("running", "done", "crashed", "preempted")
NOT_OF_THE_RUN = ("resume", "explain", "trust")
"""Keys of the configuration that do not change what is computed."""

_LIBRARIES = ("torch", "tensordict", "torchsnapshot", "numpy", "gymnasium", "hydra-core", "omegaconf", "mlflow")
_MAX_DEPTH = 5
_FIELDS: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "id": (str,),
    "status": (str,),
    "reason": (str, type(None)),
    "algo": (str,),
    "env": (str,),
    "seed": (int,),
    "parent": (str, type(None)),
    "progress": (dict,),
    "metrics": (dict,),
    "best": (int, float, dict, type(None)),
    "versions": (dict,),
    "git": (str, type(None)),
    "threads": (int,),
    "mlflow_run_id": (str, type(None)),
    "config_hash": (str,),
    "process": (dict,),
}


class RunFolder:
    """A folder with a ``run.json`` in it; make one with ``start`` or ``open``."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._lock: int | None = None
        self.record = record
        self.algo: str = record["algo"]
        self.env: str = record["env"]
        self.seed: int = record["seed"]
        self.config_hash: str = record["config_hash"]
        self.git_sha: str | None = record["git"]

    @classmethod
    def start(
        cls,
        path: Path,
        *,
        algo: str,
        env: str,
        seed: int,
        config_hash: str,
        git_sha: str | None = None,
        threads: int = 1,
        parent: str | None = None,
    ) -> "RunFolder":
        """Write the ``run.json`` of a run that begins in the existing folder ``path``."""
        record = dict.fromkeys(_FIELDS) | {"schema": SCHEMA, "id": secrets.token_hex(8), "status": "running"}
        record |= {"algo": algo, "env": env, "seed": seed, "config_hash": config_hash, "git": git_sha}
        record |= {"parent": parent, "progress": {}, "metrics": {}, "versions": _versions(), "threads": threads}
        record["process"] = _this_process()
        folder = cls(Path(path).absolute(), record)
        folder._write()
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The run in ``path``; ``ValueError`` with one line if there is none or its file is damaged."""
        return cls(Path(path).absolute(), read_run(path))

    def lock(self) -> None:
        """Keep other processes out until :meth:`unlock` or this process ends; ``ValueError`` if one is in here."""
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.unlock()
            pid = (self.record["process"] or {}).get("pid")
            raise ValueError(f"{self.path} is in use: process {pid} runs there now") from None

    def unlock(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def mlflow_run_id(self) -> str | None:
        return self.record["mlflow_run_id"]

    def update(
        self,
        status: str | None = None,
        reason: str | None = None,
        progress: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        best: Any = None,
        mlflow_run_id: str | None = None,
        config_hash: str | None = None,
    ) -> None:
        """Change what is given and write the file; ``metrics`` add to those there, a new status replaces the reason."""
        if status is not None:
            if status not in STATUSES:
                raise ValueError(f"no status {status!r}: choose from {', '.join(STATUSES)}")
            self.record |= {"status": status, "reason": reason, "process": _this_process()}
        self.record["progress"] |= _finite(progress or {})
        self.record["metrics"] |= _finite(metrics or {})
        given = {"reason": reason, "best": best, "mlflow_run_id": mlflow_run_id, "config_hash": config_hash}
        self.record |= {key: _finite(value) for key, value in given.items() if value is not None}
        self._write()

    def _write(self) -> None:
        """Replace the file in one step, so that a reader sees the old or the new one, never half of it."""
        temporary = self.path / f".{RUN_FILE}.{os.getpid()}"
        with open(temporary, "w") as file:
            json.dump(self.record, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / RUN_FILE)


def read_run(folder: Path) -> dict[str, Any]:
    """The checked content of a folder's ``run.json``; ``ValueError`` with one line where it cannot be used."""
    path = Path(folder) / RUN_FILE
    try:
        record = json.loads(_read_text(path, MAX_BYTES))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a run's folder: it has no {RUN_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a {RUN_FILE} of schema {SCHEMA}")
    wrong = [key for key, kinds in _FIELDS.items() if key not in record or not isinstance(record[key], kinds)]
    if wrong or record["status"] not in STATUSES:
        raise ValueError(f"{path} is damaged: {', '.join(wrong) or 'status'} is missing or of the wrong type")
    return record


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for two resolved configurations that describe the same run."""
    counted = {key: value for key, value in config.items() if key not in NOT_OF_THE_RUN}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def find_unfinished(outputs: Path, hash: str) -> list[Path]:
    """Folders under ``outputs`` of runs with that configuration that neither are done nor go on now, newest first."""
    found = []
    for folder in _run_folders(Path(outputs), _MAX_DEPTH):
        try:
            record = read_run(folder)
            changed = (folder / RUN_FILE).stat().st_mtime_ns
        except (ValueError, OSError):
            continue
        if record["config_hash"] == hash and record["status"] != "done" and not _is_running(record):
            found.append((changed, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def claim_folder(wanted: Path) -> Path:
    """Make the folder ``wanted``, or ``wanted-2``, ``wanted-3``, ... where another run was faster."""
    wanted = Path(wanted)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    candidate, number = wanted, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = wanted.with_name(f"{wanted.name}-{number}")


def read_git_sha(start: Path) -> str | None:
    """The commit checked out in the repository around ``start``, read from its files; ``None`` outside of one."""
    start = Path(start).absolute()
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            try:
                return _head_of(folder / ".git")
            except (OSError, ValueError):
                return None
    return None


def _head_of(git: Path) -> str | None:
    if git.is_file():  # a worktree or submodule: the file says where the folder is
        git = git.parent / _read_text(git).removeprefix("gitdir:").strip()
    common = git / _read_text(git / "commondir").strip() if (git / "commondir").is_file() else git
    head = _read_text(git / "HEAD").strip()
    if not head.startswith("ref:"):
        return _sha(head)
    name = head.removeprefix("ref:").strip()
    for folder in (git, common):
        if (folder / name).is_file():
            return _sha(_read_text(folder / name).strip())
    packed = _read_text(common / "packed-refs", MAX_BYTES).splitlines()
    return next((_sha(line.split()[0]) for line in packed if line.endswith(f" {name}")), None)


def _sha(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else None


def _read_text(path: Path, limit_bytes: int = 4096) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        raw = file.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        raise ValueError(f"it has more than {limit_bytes} bytes")
    return raw.decode()


def _run_folders(folder: Path, depth: int) -> list[Path]:
    """Folders with a ``run.json``, at most ``depth`` levels down; a run is not searched for others."""
    if (folder / RUN_FILE).is_file():
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    return [found for path in below for found in _run_folders(Path(path), depth - 1)]


def _is_running(record: dict[str, Any]) -> bool:
    """Whether the process that the record names lives on this host; of other hosts nothing is known."""
    process = record["process"]
    if record["status"] != "running" or process.get("host") != socket.gethostname():
        return False
    pid = process.get("pid")
    return isinstance(pid, int) and pid > 0 and _is_alive(pid) and _started(pid) == process.get("started")


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> int | None:
    """Clock ticks after boot at which a process began: tells it from a later one with its id. ``None`` off Linux."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _finite(value: Any) -> Any:
    """``value`` with ``None`` for every nan and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
    return None if isinstance(value, float) and not math.isfinite(value) else value
