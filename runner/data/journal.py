"""A file that only grows, with digests of its content block by block."""

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import weakref
from pathlib import Path

BLOCK_BYTES = 2**20
_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class JournalError(Exception):
    """A file that cannot be used: which, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.parent.name}/{path.name}: {reason}")


class Journal:
    """The file ``path``, which no symbolic or hard link may stand for.

    What has been committed is never written again. A commit hashes only what was added since the one before.

    Args:
        is_new: begin an empty file, whatever there was; otherwise the file must exist.
    """

    def __init__(self, path: Path, is_new: bool) -> None:
        self.path = path
        self.descriptor = _open(path, is_new)
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        self._hashed = 0
        self._block = hashlib.sha256()
        self._digests: dict[int, str] = {}
        self._released = (0, 0)

    def write(self, raw: bytes | memoryview, offset: int) -> None:
        """Write ``raw`` from the byte ``offset`` on."""
        view = memoryview(raw).cast("B")
        try:
            while len(view):
                written = os.pwrite(self.descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise JournalError(self.path, f"cannot be written: {error.strerror}") from error

    def commit(self, begin: int, end: int) -> list[str]:
        """Push what was written before ``end`` to the disk; returns digests of the blocks from ``begin`` on."""
        self.sync()
        return self._hash(begin, end)

    def sync(self) -> None:
        """Push what was written to the disk."""
        try:
            _sync(self.descriptor)
        except OSError as error:
            raise JournalError(self.path, f"cannot be written: {error.strerror}") from error

    def verify(self, begin: int, end: int, digests: list[str]) -> None:
        """Go on from a commit that returned ``digests``; ``JournalError`` where the file is not what it was then."""
        found = self._hash(begin, end)
        if len(digests) != len(found):
            raise JournalError(self.path, f"has {len(found)} blocks instead of {len(digests)}")
        for number, (digest, committed) in enumerate(zip(found, digests, strict=True), begin // BLOCK_BYTES):
            if digest != committed:
                raise JournalError(self.path, f"the SHA-256 of its block {number} is not the one in the checkpoint")

    def cut(self, end: int) -> None:
        """Forget what was written after ``end``."""
        os.ftruncate(self.descriptor, end)

    def release(self, begin: int, end: int) -> None:
        """Give the blocks between ``begin`` and ``end`` back to the disk, where the file system can do that."""
        blocks = -(-begin // BLOCK_BYTES), end // BLOCK_BYTES
        if blocks[0] < blocks[1] and blocks != self._released and hasattr(mmap, "MADV_REMOVE"):
            self._released = blocks
            place, length = blocks[0] * BLOCK_BYTES, (blocks[1] - blocks[0]) * BLOCK_BYTES
            with contextlib.suppress(OSError), mmap.mmap(self.descriptor, length, offset=place) as part:
                part.madvise(mmap.MADV_REMOVE)

    def _hash(self, begin: int, end: int) -> list[str]:
        """Digests of all blocks that hold bytes between ``begin`` and ``end``, the last one up to ``end``."""
        first, last = begin // BLOCK_BYTES, end // BLOCK_BYTES
        size = os.fstat(self.descriptor).st_size
        if size < end:
            raise JournalError(self.path, f"has {size} bytes instead of at least {end}")
        if self._hashed < first * BLOCK_BYTES:  # what came and went without ever being committed
            self._hashed, self._block = first * BLOCK_BYTES, hashlib.sha256()
        while self._hashed < end:
            self._hash_on(end)
        self._digests = {number: digest for number, digest in self._digests.items() if number >= first}
        digests = [self._digests[number] for number in range(first, last)]
        return [*digests, self._block.hexdigest()] if end % BLOCK_BYTES else digests

    def _hash_on(self, end: int) -> None:
        number, done = divmod(self._hashed, BLOCK_BYTES)
        raw = os.pread(self.descriptor, min(BLOCK_BYTES - done, end - self._hashed), self._hashed)
        if not raw:
            raise JournalError(self.path, f"ends at byte {self._hashed} instead of {end}")
        self._block.update(raw)
        self._hashed += len(raw)
        if self._hashed % BLOCK_BYTES == 0:
            self._digests[number] = self._block.hexdigest()
            self._block = hashlib.sha256()


def _open(path: Path, is_new: bool) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if is_new else 0)
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
        raise JournalError(path, reason) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise JournalError(path, "is not a regular file, or has other names")
    if is_new:
        os.ftruncate(descriptor, 0)
    return descriptor


def sync_names(folder: Path) -> None:
    """Push a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
