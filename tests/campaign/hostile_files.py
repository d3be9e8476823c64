"""Hostile files for a run's folder: pickles under every name, links, pipes, devices, folders where files should be."""

import io
import os
import pickle
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from tests.campaign.hostile import CANARY, SECRET, Payload
from tests.campaign.hostile_seal import newest, reseal

READ = (
    "run.json",
    ".hydra/config.yaml",
    "metrics.csv",
    "mlflow-unsent.jsonl",
    "ckpt/newest/manifest.json",
    "ckpt/newest/state.json",
)
WRITTEN = ("run.log", "command.txt", ".lock", ".metrics.csv.new", "metrics.csv", "mlflow-unsent.jsonl", "run.json")
NOT_READ = (
    ".hydra/overrides.yaml",
    ".hydra/hydra.yaml",
    "command.txt",
    "run.log",
    ".lock",
    "other.pickle",
    "checkpoint.pkl",
    "ckpt/latest.pt",
    "ckpt/latest",
    "meta.json",
    "data.pkl",
    "sitecustomize.py",
    "conftest.py",
    "__init__.py",
    "torch.py",
    "replay/meta.json",
    "replay/other.pickle",
    "mlruns/0/meta.yaml",
    "wandb/settings",
    ".env",
)


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def pickles() -> list[tuple[str, bytes]]:
    """Pickles that run something when they are loaded, in every protocol."""
    touch = f"touch {CANARY}"
    calls: list[tuple[str, _Calls]] = [
        ("os.system", _Calls(os.system, touch)),
        ("eval", _Calls(eval, f"__import__('os').system('{touch}')")),
        ("exec", _Calls(exec, f"open('{CANARY}', 'w')")),
        ("open", _Calls(open, CANARY, "w")),
        ("import", _Calls(__import__, "planted")),
        ("torch.load", _Calls(partial(torch.load, weights_only=False), "planted.pt")),
    ]
    made = [
        (f"{name}, protocol {protocol}", pickle.dumps(call, protocol))
        for (name, call), protocol in zip(calls, cycle([2, 3, 4, 5, 0, 1]), strict=False)
    ]
    by_hand = f"cos\nsystem\n(S'{touch}'\ntR.".encode()
    stacked = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(word)]) + word for word in (b"posix", b"system"))
    stacked += b"\x93(\x8c" + bytes([len(touch)]) + touch.encode() + b"tR."
    return [*made, ("by hand", by_hand), ("STACK_GLOBAL", stacked)]


def _place(run: Path, name: str) -> Path:
    path = run / name.replace("ckpt/newest", str(newest(run).relative_to(run)))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _put(name: str, raw: bytes) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        plant(run)
        _place(run, name).write_bytes(raw)

    return apply


def plant(run: Path, name: str = "planted.py") -> None:
    """A module that does harm when it is imported: in the run's folder, and where the user's own modules are."""
    text = f"open({CANARY!r}, 'w')\nimport os\nos.system('touch {CANARY}')\nclass Hook: ...\n"
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(text)
    Path("planted.py").write_text(text)
    Path("planted.pt").write_bytes(pickle.dumps(_Calls(os.system, f"touch {CANARY}")))


def pickle_payloads() -> Iterator[Payload]:
    """Pickles in the files a resume reads, in those it does not, and in the payload of a sealed checkpoint."""
    turn = cycle(pickles())
    for name in (*READ, *NOT_READ):
        kind, raw = next(turn)
        yield Payload(
            "pickle", f"{name}: {kind}", _put(name, raw), template="mlflow" if "mlflow" in name else "torchsnapshot"
        )
    for kind, raw in pickles():
        yield Payload(
            "pickle", f"sealed tensors.pt: {kind}", _sealed("tensors.pt", raw), template="torch", expect=("fell back",)
        )
    for kind, raw in pickles()[::3]:
        yield Payload("pickle", f"sealed state.json: {kind}", _sealed("../state.json", raw), expect=("fell back",))
        yield Payload(
            "pickle", f"sealed snapshot index: {kind}", _sealed(".snapshot_metadata", raw), expect=("fell back",)
        )
        yield Payload("pickle", f"sealed tensor file: {kind}", _sealed_over_first(raw))
    for kind, raw in (("legacy", _legacy()), ("zip", _zipped()), ("tar", _tarred())):
        yield Payload(
            "pickle",
            f"sealed tensors.pt of torch.save, {kind}",
            _sealed("tensors.pt", raw),
            template="torch",
            expect=("fell back",),
        )
    yield Payload("pickle", "a sidecar of the payload, sealed", _sealed("other.pickle", pickles()[0][1]))


def _sealed(name: str, raw: bytes) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        plant(run)
        path = newest(run) / "payload" / name
        path.write_bytes(raw)
        reseal(newest(run))

    return apply


def _sealed_over_first(raw: bytes) -> Callable[[Path], None]:
    """Into the first file with a tensor in it, cut or filled up to its size."""

    def apply(run: Path) -> None:
        files = sorted(path for path in (newest(run) / "payload").rglob("*") if path.is_file() and path.suffix == "")
        path = next(path for path in files if not path.name.startswith("."))
        size = path.stat().st_size
        path.write_bytes(raw[:size].ljust(size, b"."))
        reseal(newest(run))

    return apply


def _legacy() -> bytes:
    file = io.BytesIO()
    torch.save({"x": _Calls(os.system, f"touch {CANARY}")}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _zipped() -> bytes:
    file = io.BytesIO()
    torch.save({"x": _Calls(os.system, f"touch {CANARY}"), "y": torch.zeros(3)}, file)
    return file.getvalue()


def _tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            raw = pickles()[0][1]
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return file.getvalue()


def special_payloads() -> Iterator[Payload]:
    """Links out of the folder, in circles and to devices; pipes, sockets, devices, folders; names given twice."""
    yield from _link_payloads()
    yield from _pipe_payloads()
    yield from _folder_payloads()


def _link_payloads() -> Iterator[Payload]:
    names = sorted({*READ, *WRITTEN, ".hydra", "ckpt", "ckpt/newest", "ckpt/newest/payload"})
    for name in names:
        template = "mlflow" if "mlflow" in name else "torchsnapshot"
        yield Payload("link", f"{name} lies outside", _lead_out(name), template=template, expect=_of(name))
    for name in (*WRITTEN, "config.yaml", "ckpt/newest/state.json"):
        template = "mlflow" if "mlflow" in name else "torchsnapshot"
        yield Payload("link", f"{name} to a start-up file", _link(name, f"{SECRET}/bashrc"), template=template)
    yield Payload("link", "run.log to a file that is not there yet", _link("run.log", f"{SECRET}/new"))
    for name, target in zip(
        cycle(("run.json", ".hydra/config.yaml", "metrics.csv", "ckpt/newest/manifest.json")),
        (
            "/etc/passwd",
            "/dev/zero",
            "/dev/tty",
            "/proc/self/mem",
            "/proc/kmsg",
            "/dev/stdin",
            "/proc/self/fd/0",
            "run.json",
        ),
        strict=False,
    ):
        yield Payload("link", f"{name} to {target}", _link(name, target))
    yield Payload("link", "a folder to itself", lambda run: os.symlink(".", run / "loop"))
    yield Payload("link", "ckpt to itself", _link("ckpt", "ckpt"))
    yield Payload("link", "a second name of a file outside", _hard_link)


def _pipe_payloads() -> Iterator[Payload]:
    for name in (
        "run.json",
        ".hydra/config.yaml",
        "metrics.csv",
        "mlflow-unsent.jsonl",
        "run.log",
        "command.txt",
        ".lock",
        ".hydra",
        "ckpt",
        "ckpt/newest",
        "ckpt/newest/state.json",
        "replay",
    ):
        template = "mlflow" if "mlflow" in name else "torchsnapshot"
        yield Payload("pipe", f"{name} is a pipe", _make(name, os.mkfifo), template=template)
    yield Payload("pipe", "run.log is a socket", _make("run.log", _socket))
    yield Payload("pipe", "a device in the folder", _make("ckpt/newest/payload/x", _device))


def _folder_payloads() -> Iterator[Payload]:
    for name in (
        "run.json",
        ".hydra/config.yaml",
        "metrics.csv",
        "run.log",
        "command.txt",
        ".lock",
        ".metrics.csv.new",
        "ckpt/newest/manifest.json",
        "ckpt/newest/state.json",
    ):
        yield Payload("folder", f"{name} is a folder", _make(name, os.mkdir))
    yield Payload("folder", "ckpt is a file", _make("ckpt", lambda path: Path(path).write_bytes(b"")))
    yield Payload("folder", "450 folders deep", _deep)
    yield Payload("folder", "a thousand checkpoints", _many)


def _of(name: str) -> tuple[str, ...]:
    return ("refused", "fell back") if name.startswith("ckpt/newest") else ("refused",)


def _lead_out(name: str) -> Callable[[Path], None]:
    """What a run needs is all there, but elsewhere: nothing but the link itself gives it away."""

    def apply(run: Path) -> None:
        path = _place(run, name)
        if not path.exists():
            path.write_bytes(b"")
        target = Path(SECRET, path.name.lstrip("."))
        shutil.move(path, target)
        path.symlink_to(target.absolute())

    return apply


def _link(name: str, target: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = _place(run, name)
        _remove(path)
        path.symlink_to(target if target.startswith("/") or name == target else os.path.relpath(target, path.parent))

    return apply


def _hard_link(run: Path) -> None:
    _remove(run / "run.log")
    os.link(f"{SECRET}/bashrc", run / "run.log")


def _make(name: str, make: Callable[[str], Any]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = _place(run, name)
        _remove(path)
        make(str(path))

    return apply


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))


def _device(path: str) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:  # not root: another thing that is no file
        os.mkfifo(path)


def _deep(run: Path) -> None:
    descriptor = os.open(run, os.O_RDONLY)
    for _ in range(450):
        os.mkdir("aaaaaaaa", dir_fd=descriptor)
        deeper = os.open("aaaaaaaa", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)


def _many(run: Path) -> None:
    for number in range(1000):
        (run / "ckpt" / f"step-{number + 1000}").mkdir()
