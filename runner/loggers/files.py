"""Opening files of a run's folder, where nothing is trusted: a name there may be a link, a pipe or a device."""

import os
import stat
from pathlib import Path

_ALWAYS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of the regular file ``path``; ``OSError`` for anything else, and without waiting for a pipe."""
    descriptor = os.open(path, flags | _ALWAYS, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a regular file")
    return descriptor


def write_at(path: Path, data: bytes, offset: int) -> int:
    """Write ``data`` at ``offset``, over what a write that failed halfway left there; returns where it ends.

    A file that is not there is made only to begin it.
    """
    descriptor = open_regular(path, os.O_WRONLY | (0 if offset else os.O_CREAT))
    try:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            offset, rest = offset + written, rest[written:]
    finally:
        os.close(descriptor)
    return offset


def make_durable(path: Path) -> None:
    """Push a file, and its name in its folder, to the disk."""
    for target, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(target, flags | _ALWAYS)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
