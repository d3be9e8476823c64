"""Writes transitions into files as they are collected, a column for each entry."""

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.dataset_header import (
    DTYPES,
    MAX_ROWS,
    Field,
    Header,
    describe_spec,
    file_of,
    key_of_field,
    name_of_field,
    read_field,
)
from runner.data.journal import Journal, JournalError, sync_names
from runner.spec import CheckpointError, Deferred, EnvSpec, HooklineError, StateDict

PENDING_BYTES = 2**18
"""Of one column that are collected in memory before they are written."""
_PART_BYTES = 2**22
_NO_ROOM = "there is no room for the rows of the dataset"


class _Column:
    """One file that is being written, with a running digest of what is on the disk for good."""

    def __init__(self, path: Path, field: Field, is_new: bool) -> None:
        self.field = field
        self._dtype, self._shape = DTYPES[field.dtype], torch.Size(field.shape)
        self._journal = Journal(path, is_new)
        self._pending = bytearray()
        self._written = 0
        self._hashed, self._sha256 = 0, hashlib.sha256()

    def fits(self, rows: Tensor) -> bool:
        return rows.dtype is self._dtype and rows.shape[1:] == self._shape

    def append(self, rows: Tensor) -> None:
        is_known = self._dtype is not torch.bfloat16  # to numpy
        self._pending += (rows if is_known else rows.contiguous().view(torch.int16)).numpy().tobytes()
        if len(self._pending) >= PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand over to the system what is only in memory."""
        if self._pending:
            self._journal.write(memoryview(self._pending), self._written)
            self._written += len(self._pending)
            self._pending = bytearray()

    def commit(self, end: int) -> Field:
        """Push the file to the disk; returns the column with the digest of its first ``end`` bytes."""
        self._journal.sync()
        if end < self._hashed:
            self._hashed, self._sha256 = 0, hashlib.sha256()
        while self._hashed < end:
            raw = os.pread(self._journal.descriptor, min(_PART_BYTES, end - self._hashed), self._hashed)
            if not raw:
                raise JournalError(self._journal.path, f"ends at byte {self._hashed} instead of {end}")
            self._sha256.update(raw)
            self._hashed += len(raw)
        return Field(self.field.dtype, self.field.shape, self._sha256.hexdigest())

    def verify(self, end: int) -> None:
        """``JournalError`` where the first ``end`` bytes are not those of the field's digest."""
        if self.commit(end) != self.field:
            raise JournalError(self._journal.path, "its SHA-256 is not the one in the checkpoint")

    def cut(self, end: int) -> None:
        """Go on behind the first ``end`` bytes."""
        self._journal.cut(end)
        self._written, self._pending = end, bytearray()


class DatasetWriter:
    """Writes rows into the files of a folder, of which memory holds the newest ones alone.

    A checkpoint refers to the files: how many rows there were, and their digests. Going on from it cuts them back.
    Until :meth:`close` the header says that there is more to come.

    Args:
        path: the folder, made with the first rows; another dataset there is overwritten.
        spec: the environment that the rows are of.
        about: what else a reader should know: numbers, texts and truth values by name.
    """

    def __init__(self, path: str | Path, spec: EnvSpec, about: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path).absolute()
        self.spec = describe_spec(spec)
        self.about: dict[str, Any] = dict(about or {})
        self.rows = 0
        self._columns: dict[NestedKey, _Column] = {}
        self._is_open = self._is_closed = False

    def append(self, rows: Mapping[NestedKey, Tensor]) -> None:
        """Write rows ``[R, ...]`` of every entry; the first ones say which entries, types and shapes there are.

        Raises:
            ValueError: for rows that do not fit those before.
            HooklineError: where the disk takes no more.
        """
        arrays = {key: tensor.detach().cpu() for key, tensor in rows.items()}
        try:
            if not self._columns:
                self._begin(arrays)
            elif not self._is_open:
                self._open()
            count = self._check(arrays)
            for key, array in arrays.items():
                self._columns[key].append(array)
            self.rows += count
        except (JournalError, OSError) as error:
            raise HooklineError(f"{_NO_ROOM}: {error}") from error

    def _begin(self, rows: Mapping[NestedKey, Tensor]) -> None:
        fields = {key: Field(str(row.dtype).removeprefix("torch."), tuple(row.shape[1:])) for key, row in rows.items()}
        unknown = [f"{key}: {field.dtype}" for key, field in fields.items() if field.dtype not in DTYPES]
        if unknown or not fields:
            raise ValueError(f"these rows cannot be in a dataset: {', '.join(unknown) or 'they have no entries'}")
        paths = {key: file_of(name_of_field(key)) for key in fields}
        self.path.mkdir(parents=True, exist_ok=True)
        self._columns = {key: _Column(self._folder() / paths[key], field, True) for key, field in fields.items()}
        self._open()

    def _folder(self) -> Path:
        if self.path.is_symlink() or not self.path.is_dir():
            raise JournalError(self.path, "is not a folder")
        return self.path

    def _open(self) -> None:
        """Forget what the files hold besides the rows so far, and say in the header that they are being written."""
        self._cut()
        fields = {name_of_field(key): Field(one.field.dtype, one.field.shape) for key, one in self._columns.items()}
        Header(self.spec, self.about, fields, None).write(self._folder())
        self._is_open, self._is_closed = True, False

    def _cut(self) -> None:
        for column in self._columns.values():
            column.cut(self.rows * column.field.nbytes)

    def _check(self, rows: Mapping[NestedKey, Tensor]) -> int:
        counts = {len(row) for row in rows.values()}
        fits = rows.keys() == self._columns.keys() and all(self._columns[key].fits(row) for key, row in rows.items())
        if not fits or len(counts) != 1:
            raise ValueError("these rows are not like the first ones of the dataset")
        return counts.pop()

    def state_dict(self) -> StateDict:
        try:
            for column in self._columns.values():
                column.flush()
        except JournalError as error:
            raise HooklineError(f"{_NO_ROOM}: {error}") from error
        fields = Deferred(partial(self._commit, self.rows, dict(self._columns)))
        return {"rows": self.rows, "about": dict(self.about), "fields": fields}

    def _commit(self, rows: int, columns: Mapping[NestedKey, _Column]) -> StateDict:
        """Bring the first ``rows`` rows to the disk; by a checkpoint's writer, while others are added."""
        if columns:
            for folder in (self.path, self.path.parent):
                sync_names(folder)
        return {name_of_field(key): _entry(one.commit(rows * one.field.nbytes)) for key, one in columns.items()}

    def load_state_dict(self, state: StateDict) -> None:
        """Go on behind the rows that there were; the files are cut back to them once there are others.

        Raises:
            CheckpointError: where the files do not hold what they held then.
        """
        fields = state["fields"].work() if isinstance(state["fields"], Deferred) else state["fields"]
        self.rows, self.about, self._columns = 0, dict(state["about"]), {}
        self._is_open = self._is_closed = False
        if not fields:
            return
        try:
            self._go_on(state["rows"], {name: read_field(name, entry, True) for name, entry in fields.items()})
        except (JournalError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the rows of its dataset cannot be used: {error}") from error

    def _go_on(self, rows: int, fields: Mapping[str, Field]) -> None:
        if not (type(rows) is int and 0 <= rows < MAX_ROWS):
            raise ValueError(f"{rows!r:.40} is no number of rows")
        folder = self._folder()
        columns = {key_of_field(name): _Column(folder / file_of(name), field, False) for name, field in fields.items()}
        for column in columns.values():
            column.verify(rows * column.field.nbytes)
        self.rows, self._columns = rows, columns

    def close(self) -> None:
        """Bring every row to the disk, and say in the header how many there are and what their digests are."""
        if self._is_closed or not self._columns:
            return
        was_open, self._is_open, self._is_closed = self._is_open, False, True  # this is tried once
        try:
            if not was_open:
                self._cut()
            for column in self._columns.values():
                column.flush()
            columns = self._columns.items()
            fields = {name_of_field(key): one.commit(self.rows * one.field.nbytes) for key, one in columns}
            Header(self.spec, self.about, fields, self.rows).write(self._folder())
        except (JournalError, OSError) as error:
            raise HooklineError(f"{_NO_ROOM}: {error}") from error


def _entry(field: Field) -> StateDict:
    return {"dtype": field.dtype, "shape": list(field.shape), "sha256": field.sha256}
