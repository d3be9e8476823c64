"""Memory at fixed addresses whose parts can become parts of a file, and ordinary memory again."""

import ctypes
import functools
import mmap
import os
import weakref
from typing import Any

MAP_FIXED = 0x10
"""Of Linux and macOS alike; Python's own mmap cannot put a mapping at a given place."""
MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_READ, _READ_WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


class Region:
    """``size`` bytes that read as zeros and take no memory until they are put somewhere; begins and ends are of pages.

    Attributes:
        buffer: the bytes, for numpy and torch; the memory lives as long as it does.
    """

    def __init__(self, size: int) -> None:
        address = _map(None, size, _READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self.size = size
        self.buffer: Any = (ctypes.c_char * size).from_address(address)
        self.view = memoryview(self.buffer).cast("B")
        self._address = address
        # Not at exit, when somebody may still look at the memory.
        weakref.finalize(self.buffer, _library().munmap, address, size).atexit = False

    def put_in_memory(self, begin: int, end: int) -> None:
        """Make the part writable and keep its content, but let nobody else see what is written."""
        content = bytes(self.view[begin:end])
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        _map(self._address + begin, end - begin, _READ_WRITE, flags, -1, 0)
        self.view[begin:end] = content

    def put_in_file(self, begin: int, end: int, descriptor: int, offset: int, is_cached: bool = False) -> None:
        """Let the part show the file from ``offset`` on; what was in it is forgotten.

        Args:
            is_cached: the system has these bytes in memory, so that showing them all now is cheap.
        """
        if begin < end:
            place, flags = self._address + begin, mmap.MAP_SHARED | MAP_FIXED | (MAP_POPULATE if is_cached else 0)
            _map(place, end - begin, _READ_WRITE, flags, descriptor, offset)
            # Rows are drawn at random: what lies beside one on the disk is of no use.
            _library().madvise(place, end - begin, mmap.MADV_RANDOM)

    def protect(self) -> None:
        """Let nobody write to it any more; who tries ends the process."""
        if _library().mprotect(self._address, self.size, _READ):
            raise OSError(ctypes.get_errno(), "memory cannot be protected")


def _map(address: int | None, size: int, protection: int, flags: int, descriptor: int, offset: int) -> int:
    place = _library().mmap(address, size, protection, flags, descriptor, offset)
    if place is None or place == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"{size} bytes cannot be mapped into memory: {os.strerror(number)}")
    return place


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library
