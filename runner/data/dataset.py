"""Transitions in files, a column for each entry, read without taking memory."""

import hashlib
import logging
import mmap
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.dataset_header import (
    DTYPES,
    DatasetError,
    Field,
    Header,
    file_of,
    key_of_field,
    open_regular,
    read_header,
)
from runner.data.dataset_writer import DatasetWriter

__all__ = ["Dataset", "DatasetError", "DatasetWriter"]

log = logging.getLogger(__name__)

_PART_BYTES = 2**22


class Dataset:
    """The rows of a dataset, oldest first, as tensors that show its files.

    The rows are those of the environments in turns: ``about["num_envs"]`` rows after a row comes the same one's next.

    Args:
        path: the folder that a :class:`DatasetWriter` wrote.
        verify: read every file once and compare its SHA-256.

    Attributes:
        spec: the environment that the rows are of, as ``describe_spec`` has it.
        about: what else its writer said, for example ``num_envs`` and ``skip``.

    Raises:
        DatasetError: in one line, where the files are not what the header says.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.spec: dict[str, Any] = dict(header.spec)
        self.about: dict[str, Any] = dict(header.about)
        self._rows = header.rows if header.rows is not None else self._rows_in_files(header)
        self._tensors = {key_of_field(name): self._show(name, field, verify) for name, field in header.fields.items()}

    @classmethod
    def of_tensors(
        cls,
        path: str | Path,
        tensors: Mapping[NestedKey, Tensor],
        spec: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> "Dataset":
        """A dataset of tensors ``[R, ...]`` that are there already, for example those of a replay buffer."""
        sizes = {len(tensor) for tensor in tensors.values()}
        if len(sizes) != 1:
            raise DatasetError(Path(path), f"its columns have {sorted(sizes)} rows")
        one = cls.__new__(cls)
        one.path, one.spec, one.about = Path(path), dict(spec), dict(about or {})
        one._rows, one._tensors = sizes.pop(), dict(tensors)
        return one

    @property
    def keys(self) -> tuple[NestedKey, ...]:
        """The entries that every row has."""
        return tuple(self._tensors)

    def __len__(self) -> int:
        return self._rows

    def tensor(self, key: NestedKey) -> Tensor:
        """One column ``[R, ...]``; it shows a file that cannot be written, and is not to be written to."""
        try:
            return self._tensors[key]
        except KeyError:
            there = ", ".join(map(str, self.keys))
            raise DatasetError(self.path, f"it has no {key!r}; it has {there}") from None

    def __getitem__(self, rows: Any) -> dict[NestedKey, Tensor]:
        """Some rows of every column: views for a slice, copies for indices ``[B]``."""
        return {key: tensor[rows] for key, tensor in self._tensors.items()}

    def _rows_in_files(self, header: Header) -> int:
        """As many as every file has in full, where the writer did not come to its end."""
        sizes = [self._open(name)[1] // field.nbytes for name, field in header.fields.items()]
        log.warning("dataset %s was not closed: its first %s rows are read, and not verified", self.path, min(sizes))
        return min(sizes)

    def _open(self, name: str) -> tuple[mmap.mmap | None, int]:
        """A file's bytes, if it has any, and how many they are."""
        try:
            descriptor = open_regular(self.path / file_of(name))
            try:
                size = os.fstat(descriptor).st_size
                return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else None, size
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DatasetError(self.path, f"{file_of(name)}: {reason}") from None

    def _show(self, name: str, field: Field, verify: bool) -> Tensor:
        memory, size = self._open(name)
        needed = self._rows * field.nbytes
        if size < needed or (field.sha256 is not None and size != needed):
            raise DatasetError(self.path, f"{file_of(name)}: has {size} bytes instead of {needed}")
        if memory is None or not needed:
            return torch.empty((0, *field.shape), dtype=DTYPES[field.dtype])
        if verify and field.sha256 is not None and hashlib.sha256(memory).hexdigest() != field.sha256:
            raise DatasetError(self.path, f"{file_of(name)}: its SHA-256 is not the one in the header")
        if field.dtype == "bool" and _has_other_bytes(memory, needed):  # torch would take it for granted
            raise DatasetError(self.path, f"{file_of(name)}: a byte that is neither true nor false")
        dtype = DTYPES[field.dtype]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            return torch.frombuffer(memory, dtype=dtype, count=needed // dtype.itemsize).view(-1, *field.shape)


def _has_other_bytes(memory: mmap.mmap, size: int) -> bool:
    flags = np.frombuffer(memory, np.uint8, size)
    return any(bool((flags[begin : begin + _PART_BYTES] > 1).any()) for begin in range(0, size, _PART_BYTES))
