"""Lets the n-th system call of a kind in a folder fail, whoever makes it: Python, torch's C++, any thread.

A child puts a seccomp filter on itself (Linux 5.5 or later, no privileges needed); its parent is then asked about each
call, and lets it go on or answers with an error. Reads of mapped memory are no calls: those cannot be made to fail.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.damaged_runs import Ended, fork

_NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "pread64": 17, "pwrite64": 18,
        "readv": 19, "writev": 20, "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82,
        "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "getdents64": 217, "openat": 257,
        "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265, "fallocate": 285,
        "pwritev": 296, "renameat2": 316, "sendfile": 40, "copy_file_range": 326, "statx": 332,
    },
    "aarch64": {
        "mkdirat": 34, "unlinkat": 35, "linkat": 37, "renameat": 38, "truncate": 45, "ftruncate": 46, "fallocate": 47,
        "openat": 56, "close": 57, "getdents64": 61, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67,
        "pwrite64": 68, "pwritev": 70, "sendfile": 71, "newfstatat": 79, "fstat": 80, "fsync": 82, "fdatasync": 83,
        "renameat2": 276, "copy_file_range": 285, "statx": 291,
    },
}  # fmt: skip
_KINDS = {
    "create": "creat",
    "open": "open openat",
    "write": "write pwrite64 writev pwritev sendfile copy_file_range fallocate truncate ftruncate",
    "sync": "fsync fdatasync",
    "rename": "rename renameat renameat2 link linkat",
    "make folder": "mkdir mkdirat",
    "remove": "unlink unlinkat rmdir",
    "list": "getdents64",
    "look": "stat lstat fstat newfstatat statx",
    "read": "read pread64 readv",
    "close": "close",
}
_KIND = {call: kind for kind, calls in _KINDS.items() for call in calls.split()}
_PATHS = {
    **dict.fromkeys(("open", "creat", "truncate", "mkdir", "rmdir", "unlink", "stat", "lstat"), (None, 0)),
    **dict.fromkeys(("openat", "mkdirat", "unlinkat", "newfstatat", "statx"), (0, 1)),
    **dict.fromkeys(("rename", "link"), (None, 1)),
    **dict.fromkeys(("renameat", "renameat2", "linkat"), (2, 3)),
}  # fmt: skip
"""Which arguments are the folder's descriptor, if there is one, and the path; all other calls have a descriptor."""
_DESCRIPTOR = {"copy_file_range": 2}
_FLAGS = {"open": 1, "openat": 2}

_SPACE = (errno.ENOSPC, errno.EDQUOT)
_RIGHTS = (errno.EACCES, errno.EROFS)
PLAUSIBLE: dict[str, tuple[int, ...]] = {
    "create": (*_SPACE, *_RIGHTS, errno.EIO, errno.EMFILE),
    "open": (errno.EACCES, errno.EIO, errno.EMFILE),
    "write": (*_SPACE, errno.EIO),
    "sync": (*_SPACE, errno.EIO),
    "rename": (*_SPACE, *_RIGHTS, errno.EIO),
    "make folder": (*_SPACE, *_RIGHTS, errno.EIO),
    "remove": (*_RIGHTS, errno.EIO),
    "list": (errno.EACCES, errno.EIO),
    "look": (errno.EACCES, errno.EIO),
    "read": (errno.EIO,),
    "close": (*_SPACE, errno.EIO),
}
"""What a call of each kind fails with, on one file system or another."""
LASTING = {
    **dict.fromkeys(_SPACE, ("create", "write", "make folder")),
    **dict.fromkeys(_RIGHTS, ("create", "make folder", "rename", "remove")),
    errno.EIO: ("create", "write", "sync", "rename", "make folder", "remove"),
}


@dataclass(frozen=True)
class Fault:
    """The ``number``-th call of ``kind`` fails; with ``lasts``, so do all after it that such a disk would refuse."""

    kind: str
    number: int
    error: int
    lasts: bool = False

    def __str__(self) -> str:
        return f"{errno.errorcode[self.error]} at {self.kind} {self.number}" + (" and after it" if self.lasts else "")


class Switch:
    """Shared by parent and child: calls count, and fail, only while it is on."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def is_on(self) -> bool:
        return self._memory[0] == 1

    @contextmanager
    def on(self) -> Any:
        self._memory[0] = 1
        try:
            yield
        finally:
            self._memory[0] = 0


@dataclass
class Watched:
    """How a child ended, how many calls of each kind it made, and which of them failed."""

    ended: Ended
    calls: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


def why_not() -> str | None:
    """Why calls cannot be made to fail here, if so."""
    if platform.system() != "Linux" or platform.machine() not in _NUMBERS:
        return f"system calls are not known for {platform.system()} on {platform.machine()}"
    watched = watch(lambda switch: os.getpid(), Path("/nowhere"))
    return None if watched.ended.code == 0 else f"no seccomp here: {watched.ended.output.splitlines()[-1:]}"


def watch(work: Callable[[Switch], Any], folder: Path, fault: Fault | None = None, seconds: int = 60) -> Watched:
    """Run ``work`` in a forked child, of whose calls in ``folder`` one may fail while its switch is on."""
    switch, (here, there) = Switch(), socket.socketpair()

    def watched_work() -> Any:
        here.close()
        _ask_parent(there)
        return work(switch)

    child = fork(watched_work, seconds)
    there.close()
    judge = _Judge(switch, str(folder), fault)
    _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
    here.close()
    for listener in descriptors:
        _answer(listener, child.pid, judge)
        os.close(listener)
    return Watched(child.wait(), judge.calls, judge.failed)


class _Judge:
    """Counts calls, and says which error one gets."""

    def __init__(self, switch: Switch, folder: str, fault: Fault | None) -> None:
        self.calls: Counter[str] = Counter()
        self.failed: list[str] = []
        self._switch, self._folder, self._fault = switch, folder, fault
        names = {number: name for name, number in _NUMBERS[platform.machine()].items()}
        self._names = {number: names[number] for number in names if names[number] in _KIND}

    def error_of(self, thread: int, number: int, arguments: tuple[int, ...]) -> int:
        """0, or the error that this call of that thread gets."""
        name = self._names[number]
        if not self._switch.is_on():
            return 0
        path = _path_of(thread, name, arguments)
        if path != self._folder and not path.startswith(f"{self._folder}/"):
            return 0
        creates = name in _FLAGS and arguments[_FLAGS[name]] & os.O_CREAT
        kind = "create" if creates else _KIND[name]
        self.calls[kind] += 1
        if self._fault is None or not self._hits(kind, self._fault):
            return 0
        self.failed.append(f"{name} {path}")
        return self._fault.error

    def _hits(self, kind: str, fault: Fault) -> bool:
        if kind == fault.kind and self.calls[kind] == fault.number:
            return True
        return bool(self.failed) and fault.lasts and kind in LASTING.get(fault.error, ())


def _path_of(thread: int, name: str, arguments: tuple[int, ...]) -> str:
    """The path a call is about; empty where that cannot be known any more."""
    try:
        if name not in _PATHS:
            return os.readlink(f"/proc/{thread}/fd/{arguments[_DESCRIPTOR.get(name, 0)]}")
        folder, at = _PATHS[name]
        path = _text_at(thread, arguments[at])
        if path.startswith("/"):
            return os.path.normpath(path)
        base = ctypes.c_int(arguments[folder]).value if folder is not None else -100
        start = os.readlink(f"/proc/{thread}/{f'fd/{base}' if base >= 0 else 'cwd'}")
        return os.path.normpath(os.path.join(start, path))
    except OSError:
        return ""


def _text_at(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < 4096:
            memory.seek(address + len(text))
            text += memory.read(256 - (address + len(text)) % 256)  # never over the end of a page
    return text.partition(b"\0")[0].decode(errors="surrogateescape")


_NOTICE, _REPLY = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1


def _answer(listener: int, pid: int, judge: _Judge) -> None:
    """Decide about every call of the child until it has ended."""
    ended = os.pidfd_open(pid)
    try:
        while True:
            ready = {descriptor for descriptor, _ in _poll(listener, ended)}
            if ended in ready:
                return
            with suppress(FileNotFoundError):  # the thread that asked is gone
                notice = bytearray(_NOTICE.size)
                fcntl.ioctl(listener, _RECEIVE, notice)
                number, thread, _, call, _, _, *arguments = _NOTICE.unpack(notice)
                error = judge.error_of(thread, call, tuple(arguments))
                fcntl.ioctl(listener, _SEND, _REPLY.pack(number, 0, -error, 0 if error else _GO_ON))
    finally:
        os.close(ended)


def _poll(*descriptors: int) -> list[tuple[int, int]]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll.poll()


def _ask_parent(there: socket.socket) -> None:
    """From now on the parent decides about these calls of this process and its threads."""
    numbers = [_NUMBERS[platform.machine()][name] for name in _KIND if name in _NUMBERS[platform.machine()]]
    code = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the call's number
    code += [struct.pack("HBBI", 0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    code += [struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("HBBI", 6, 0, 0, 0x7FC00000)]  # allow, or ask
    instructions = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    listener = libc.syscall(seccomp, 1, 8, ctypes.byref(program))  # SET_MODE_FILTER, NEW_LISTENER
    if listener < 0:
        there.close()
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(there, [b"x"], [listener])
    os.close(listener)
