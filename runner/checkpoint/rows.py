"""Tensors of any type as a few rows of plain bytes, and back."""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

PACKED = "packed"
LARGE_BYTES = 2**20
"""From this size on a tensor has a row of its own, which is read straight into its place."""


class TensorMeta(NamedTuple):
    """What a tensor's bytes mean."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def pack(tensors: Mapping[str, Tensor], memory: Mapping[str, Tensor] | None = None) -> Tensors:
    """The bytes of tensors: a row for each large one, and one row for all others; empty ones are in none.

    Args:
        memory: rows from before, to be written over where they fit; without it a row may be the memory of its tensor.
    """
    layout = _lay_out({name: tensor.nbytes for name, tensor in tensors.items()})
    parts = {row: [_bytes(tensors[name].cpu().contiguous()) for name in names] for row, names in layout.items()}
    if memory is None:
        return {row: some[0] if len(some) == 1 else torch.cat(some) for row, some in parts.items()}
    return {row: torch.cat(some, out=_room(memory.get(row), some)) for row, some in parts.items()}


def row_sizes(metas: Mapping[str, TensorMeta]) -> dict[str, int]:
    """How many bytes each row has for tensors like these."""
    layout = _lay_out({name: meta.nbytes for name, meta in metas.items()})
    return {row: sum(metas[name].nbytes for name in names) for row, names in layout.items()}


class Unpacking:
    """Tensors about to be read.

    Args:
        metas: what the rows hold, in order.
        into: tensors by name that are filled in place; new ones are made for the others.

    Attributes:
        rows: to be filled; where it can be, a row is the memory of its tensor.
    """

    def __init__(self, metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> None:
        self._metas = metas
        self._layout = _lay_out({name: meta.nbytes for name, meta in metas.items()})
        self._tensors = _allocate(metas, into)
        self.rows: Tensors = {}
        self._beside: list[str] = []
        for row, size in row_sizes(metas).items():
            tensor = self._tensors[self._layout[row][0]]
            if row == PACKED or not tensor.is_contiguous():
                self._beside.append(row)
                self.rows[row] = torch.empty(size, dtype=torch.uint8)
            else:
                self.rows[row] = _bytes(tensor)

    def finish(self) -> Tensors:
        """The tensors, once ``rows`` have been filled."""
        for row in self._beside:
            names = self._layout[row]
            parts = self.rows[row].split([self._metas[name].nbytes for name in names])
            for name, part in zip(names, parts, strict=True):
                dtype, shape = self._metas[name]
                # A copy, because the part may begin where no number of its type can.
                self._tensors[name].copy_(part.clone().view(dtype).reshape(shape))
        for name, (dtype, _) in self._metas.items():
            if dtype == torch.bool and (self._tensors[name].view(torch.uint8) > 1).any():
                raise ValueError(f"{name}: a byte that is neither true nor false")  # torch would take it for granted
        return self._tensors


def _lay_out(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The rows there are, and the names of the tensors whose bytes each one strings together."""
    layout: dict[str, list[str]] = {}
    for index, (name, size) in enumerate(sizes.items()):
        if size:
            layout.setdefault(PACKED if size < LARGE_BYTES else f"t{index}", []).append(name)
    return layout


def _room(memory: Tensor | None, parts: list[Tensor]) -> Tensor:
    size = sum(map(len, parts))
    return memory if memory is not None and len(memory) == size else torch.empty(size, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _allocate(metas: Mapping[str, TensorMeta], into: Mapping[str, Tensor]) -> Tensors:
    """The caller's tensors where given, else new ones, to be filled."""
    for name in into.keys() & metas.keys():
        if (into[name].dtype, tuple(into[name].shape)) != metas[name] or into[name].device.type != "cpu":
            raise ValueError(f"{name}: cannot restore {metas[name]} into {into[name].dtype} {tuple(into[name].shape)}")
    return {
        name: into[name].detach() if name in into else torch.empty(meta.shape, dtype=meta.dtype)
        for name, meta in metas.items()
    }
