"""Tensors as they lie in files: where each one begins, and its rows by memory map."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from localqwen.errors import FormatError
from localqwen.formats import dtypes
from localqwen.machine.posix import forget_pages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a file: `start` is its offset there, `bytes` its length, `dtype` a name of the table of types.

    `shape` has rows first. A tensor that is decoded while it is read has the type and the length of the decoded one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def rows(self) -> int:
        """The number of rows, which run along the last axis; a vector is one row."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return dtypes.BY_NAME[self.dtype].row_bytes(self.shape[-1] if self.shape else 1)


class TensorFile(Protocol):
    """Where the rows of a tensor come from, whatever they are stored as."""

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        """Return rows [first, first + count), (count, columns). May be called on several threads."""

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """Take note that the first `rows` rows were read for the last time."""


class Weights(Protocol):
    """Tensors by name, and the file of each."""

    @property
    def tensors(self) -> dict[str, SourceTensor]: ...

    def file_of(self, name: str) -> TensorFile: ...


class MappedFile:
    """An open file whose tensors are read by memory map. Raises FormatError if it cannot be opened."""

    def __init__(self, path: Path, repair: str) -> None:
        """`repair` is the hint of the error."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as exc:  # an empty file cannot be mapped
            raise FormatError(f"{path} cannot be read: {exc}", repair) from exc

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        """Return rows [first, first + count) as a view on the file, (count, columns), or (count, bytes) of blocks."""
        import numpy as np

        dtype = np.dtype(dtypes.BY_NAME[tensor.dtype].numpy)
        columns = tensor.row_bytes // dtype.itemsize
        offset = tensor.start + first * tensor.row_bytes
        return np.frombuffer(self._map, dtype, count * columns, offset).reshape(count, columns)

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """Give the memory pages of the tensor's first `rows` rows back; else memory grows to the size of the file."""
        first = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        end = tensor.start + rows * tensor.row_bytes
        if end > first:
            forget_pages(self._map, first, end - first)

    def close(self) -> None:
        with suppress(BufferError):  # a view is still alive, in a traceback for instance; the map goes with it
            self._map.close()
