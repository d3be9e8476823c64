"""Stops another process before and after each of its system calls that change files: ptrace(2), without a debugger."""

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable
from typing import NamedTuple

SEIZE, INTERRUPT, SYSCALL, GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
SYSGOOD, FOLLOW_FORK, FOLLOW_VFORK, FOLLOW_CLONE, EXIT_KILL = 1, 2, 4, 8, 1 << 20
SYSCALL_STOP = signal.SIGTRAP | 0x80
EVENT_STOP = 128
ALL = 0x40000000  # __WALL: threads too

# fmt: off
X86_64 = {
    1: "write", 2: "open", 18: "pwrite64", 20: "writev", 26: "msync", 40: "sendfile", 74: "fsync", 75: "fdatasync",
    76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink",
    88: "symlink", 257: "openat", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat",
    277: "sync_file_range", 285: "fallocate", 296: "pwritev", 306: "syncfs", 316: "renameat2", 326: "copy_file_range",
    328: "pwritev2", 437: "openat2",
}
AARCH64 = {
    34: "mkdirat", 35: "unlinkat", 36: "symlinkat", 37: "linkat", 38: "renameat", 45: "truncate", 46: "ftruncate",
    47: "fallocate", 56: "openat", 64: "write", 66: "writev", 68: "pwrite64", 70: "pwritev", 71: "sendfile",
    82: "fsync", 83: "fdatasync", 84: "sync_file_range", 227: "msync", 267: "syncfs", 276: "renameat2",
    285: "copy_file_range", 287: "pwritev2", 437: "openat2",
}
# fmt: on
NAMES = {"x86_64": X86_64, "aarch64": AARCH64}.get(platform.machine(), {})
OF_A_DESCRIPTOR = {
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "fsync", "fdatasync", "ftruncate", "fallocate",
    "sync_file_range", "syncfs",
}  # fmt: skip
FLAGS_AT = {"open": 1, "openat": 2}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Call(NamedTuple):
    """A system call that may change a file below the folder that is watched; ``path`` where it has a descriptor."""

    name: str
    path: str
    is_done: bool


Watcher = Callable[[Call], bool]
"""Called before and after each call; true to let the process go on, false to kill it there."""


def can_trace() -> bool:
    """Whether this machine lets a process trace another."""
    return bool(NAMES) and ctypes.CDLL(None) is not None and _may_seize_child()


def _may_seize_child() -> bool:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        return _libc.ptrace(SEIZE, pid, None, None) == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, ALL)


def trace(pid: int, below: str, watch: Watcher, go: Callable[[], None]) -> int:
    """Trace a child and its threads, which ``go`` lets begin, to its end; returns how it ends (see ``os.wait``)."""
    seized = _seize_all(pid)
    go()
    names: dict[int, Call | None] = {}
    while True:
        thread, status = os.waitpid(-1 if seized else pid, ALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if thread == pid:
                return os.waitstatus_to_exitcode(status)
            continue
        is_call = os.WSTOPSIG(status) == SYSCALL_STOP
        if is_call and not _look(thread, pid, below, names, watch):
            os.kill(pid, signal.SIGKILL)
            continue
        is_signal = not is_call and not status >> 16
        _libc.ptrace(SYSCALL, thread, None, os.WSTOPSIG(status) if is_signal else 0)


def _seize_all(pid: int) -> list[int]:
    """Begin to trace every thread there is; those that come are traced by themselves."""
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    for thread in threads:
        if _libc.ptrace(SEIZE, thread, None, SYSGOOD | FOLLOW_CLONE | FOLLOW_FORK | FOLLOW_VFORK | EXIT_KILL):
            raise OSError(ctypes.get_errno(), "ptrace")
        _libc.ptrace(INTERRUPT, thread, None, None)
    return threads


def _look(thread: int, pid: int, below: str, names: dict[int, Call | None], watch: Watcher) -> bool:
    """Whether the process may go on from this beginning, or end, of a system call."""
    info = ctypes.create_string_buffer(88)
    if _libc.ptrace(GET_SYSCALL_INFO, thread, ctypes.c_void_p(len(info)), info) <= 0:
        return True  # it is being killed
    if info.raw[0] == 1:
        number, *arguments = struct.unpack_from("7Q", info.raw, 24)
        call = names[thread] = _call(NAMES.get(number, ""), arguments, pid, below)
        return call is None or watch(call)
    call = names.pop(thread, None)
    return call is None or watch(call._replace(is_done=True))


def _call(name: str, arguments: list[int], pid: int, below: str) -> Call | None:
    if not name or (name in FLAGS_AT and not arguments[FLAGS_AT[name]] & WRITES):
        return None
    if name not in OF_A_DESCRIPTOR:
        return Call(name, "", False)
    try:
        path = os.readlink(f"/proc/{pid}/fd/{arguments[0] & 0xFFFFFFFF}")
    except OSError:
        return None
    return Call(name, path, False) if path.startswith(below) else None
