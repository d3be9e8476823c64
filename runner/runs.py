"""A run's folder and its ``run.json``; knows nothing of torch, so that runs can be listed and resumed at once."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import secrets
import socket
import stat
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
SCHEMA = 1
MAX_BYTES = 4 * 2**20
STATUSES = ("running", "done", "crashed", "preempted")
CONFIG_FILE = Path(".hydra", "config.yaml")
WRITTEN_FIRST = (".hydra/*", ".hydra", "command.txt", "run.log", ".lock", f".{RUN_FILE}.*", RUN_FILE)
"""What is in the folder of a run before anything is trained, as patterns."""
MENDED = "put back a copy of it, or start a new run"
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
        record["config_files"] = _digests(Path(path) / CONFIG_FILE)
        folder = cls(Path(path).absolute(), record)
        folder._write()
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The run in ``path``; ``ValueError`` with one line if there is none or its file is damaged."""
        return cls(Path(path).absolute(), read_run(path))

    def lock(self) -> None:
        """Keep other processes out until :meth:`unlock` or this process ends; ``ValueError`` if one is in here."""
        try:
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ValueError(f"{self.path / '.lock'} cannot be locked: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.unlock()
            pid = (self.record["process"] or {}).get("pid")
            raise ValueError(f"{self.path} is in use: process {pid} runs there now") from None
        for name in (RUN_FILE, CONFIG_FILE):  # what a process killed while it wrote them left
            for path in (self.path / name).parent.glob(f".{Path(name).name}.*"):
                path.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            with contextlib.suppress(OSError):  # the lock is let go of all the same
                os.close(self._lock)
            self._lock = None

    @property
    def mlflow_run_id(self) -> str | None:
        return self.record["mlflow_run_id"]

    @property
    def saved_env_steps(self) -> int | None:
        """The env step of the newest checkpoint when the file was last written, if there was one; later ones may be."""
        return self.record.get("saved_env_steps")

    def update(
        self,
        status: str | None = None,
        reason: str | None = None,
        progress: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        best: Any = None,
        mlflow_run_id: str | None = None,
        config_hash: str | None = None,
        saved_env_steps: int | None = None,
    ) -> None:
        """Change what is given and write the file; ``metrics`` add to those there, a new status replaces the reason."""
        if status is not None:
            if status not in STATUSES:
                raise ValueError(f"no status {status!r}: choose from {', '.join(STATUSES)}")
            self.record |= {"status": status, "reason": reason, "process": _this_process()}
        self.record["progress"] |= _finite(progress or {})
        self.record["metrics"] |= _finite(metrics or {})
        given = {"reason": reason, "best": best, "mlflow_run_id": mlflow_run_id, "config_hash": config_hash}
        given["saved_env_steps"] = saved_env_steps
        self.record |= {key: _finite(value) for key, value in given.items() if value is not None}
        self._write()

    def store_config(self, text: str) -> None:
        """Put another configuration in place of the stored one; until that is done, either is the right one."""
        new = hashlib.sha256(text.encode()).hexdigest()
        self.record["config_files"] = [*_digests(self.path / CONFIG_FILE), new]
        self._write()
        _replace(self.path / CONFIG_FILE, text)

    def _write(self) -> None:
        _replace(self.path / RUN_FILE, json.dumps(self.record | {"digest": _seal(self.record)}, indent=1))


def _replace(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader sees the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:20]} is not a JSON number")


def _float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _seal(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _digests(path: Path) -> list[str]:
    """The SHA-256 of a small file, if there is one."""
    try:
        return [hashlib.sha256(_read_text(path, MAX_BYTES).encode()).hexdigest()]
    except (OSError, ValueError):
        return []


def is_config_changed(record: Mapping[str, Any], folder: Path) -> bool:
    """Whether the stored configuration is another one than the run of this ``run.json`` wrote."""
    written = record.get("config_files") or []
    return bool(written) and not set(_digests(folder / CONFIG_FILE)) & set(written)


def read_run(folder: Path) -> dict[str, Any]:
    """The checked content of a folder's ``run.json``; ``ValueError`` with one line where it cannot be used."""
    path = Path(folder) / RUN_FILE
    try:
        record = json.loads(_read_text(path, MAX_BYTES), parse_constant=_refuse, parse_float=_float)
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a run's folder: it has no {RUN_FILE}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {MENDED}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a {RUN_FILE} of schema {SCHEMA}")
    wrong = [key for key, kinds in _FIELDS.items() if key not in record or not isinstance(record[key], kinds)]
    wrong += [key for key, value in record.items() if not _is_flat(value)]
    if wrong or record["status"] not in STATUSES:
        raise ValueError(f"{path} is damaged: {', '.join(wrong) or 'status'} is missing or of the wrong type; {MENDED}")
    if record.pop("digest", None) not in (None, _seal(record)):
        raise ValueError(f"{path} is damaged, or was edited without taking out its digest")
    return record


def _is_flat(value: Any) -> bool:
    """Whether it is a number, a text, nothing, or a list or mapping of those and no more."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
    return all(part is None or isinstance(part, str | int | float) for part in inner)


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for two resolved configurations that describe the same run."""
    counted = {key: value for key, value in config.items() if key not in NOT_OF_THE_RUN}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def unreadable_runs(outputs: Path) -> list[str]:
    """One line for each folder under ``outputs`` whose ``run.json`` cannot be used."""
    lines = []
    for folder in _run_folders(Path(outputs), _MAX_DEPTH):
        try:
            read_run(folder)
        except ValueError as error:
            lines.append(str(error))
    return lines


def find_unfinished(outputs: Path, hash: str | None = None) -> list[Path]:
    """Folders under ``outputs`` of runs (with that configuration) that neither are done nor go on now, newest first."""
    found = []
    for folder in _run_folders(Path(outputs), _MAX_DEPTH):
        try:
            record = read_run(folder)
            changed = (folder / RUN_FILE).stat().st_mtime_ns
        except (ValueError, OSError):
            continue
        if hash in (None, record["config_hash"]) and record["status"] != "done" and not _is_running(record):
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


def has_run(folder: Path) -> bool:
    """Whether there is a run in ``folder``, or a job of a sweep."""
    return any(Path(folder).rglob(RUN_FILE))


def remove_unstarted(folder: Path) -> None:
    """Remove what a run that never began wrote, and the folders that this leaves empty; what else is there stays."""
    folder = Path(folder)
    written = [path for pattern in WRITTEN_FIRST for path in folder.glob(pattern)]
    is_ours = not folder.is_absolute() and ".." not in folder.parts
    above = [path for path in folder.parents if path != Path()] if is_ours else []
    for path in (*written, folder, *above):
        try:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        except OSError:
            continue


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
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileNotFoundError(f"there is no file {path}")
        raw = file.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        raise ValueError(f"it has more than {limit_bytes} bytes")
    return raw.decode()


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting, as a pipe would have us do, and some files of the kernel."""
    return os.open(path, flags | os.O_NONBLOCK)


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
