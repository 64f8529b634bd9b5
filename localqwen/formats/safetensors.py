"""One safetensors file: its header read strictly, its weights by memory map. Knows nothing of Qwen3 or GGUF.

A header comes from strangers, so every number in it is checked against the file before it is used. The format
(safetensors' README): eight bytes of header length, a JSON object, then the data without gaps.
"""

from __future__ import annotations

import json
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localqwen.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Bytes per element. Types beyond the float ones are known so that a file with them is described rightly.
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
#: numpy has no bfloat16: its bits are read as uint16.
NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
#: What can be read, and only then be decoded: eight-bit floats as their bits, packed integers.
_READABLE = NUMPY_TYPES | {"F8_E4M3": "u1", "I32": "<i4", "U32": "<u4", "U8": "u1"}
#: The reference implementation allows 100 MB; the whole of Qwen3-235B needs 5, and parsing takes many times as much.
MAX_HEADER = 25_000_000
MAX_DIMENSIONS = 8
_REPAIR = "download this file again"


@dataclass(frozen=True)
class SourceTensor:
    """`start` is the offset in the file, `bytes` the length there; `shape` is in safetensors' order, rows first.

    What is decoded while it is read has the type and the length that it is decoded to.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def rows(self) -> int:
        """A vector is one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        return self.bytes // self.rows


class TensorFile(Protocol):
    """Where the rows of a tensor come from, whatever they are stored as."""

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        """Rows [first, first + count), (count, columns). May be called on several threads."""

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """The first `rows` rows were taken for the last time."""


class Weights(Protocol):
    """Tensors by name, and the file of each."""

    @property
    def tensors(self) -> dict[str, SourceTensor]: ...

    def file_of(self, name: str) -> TensorFile: ...


class SafetensorsFile:
    """An open file: `tensors` by name. Raises CheckpointError for a file that is not exactly what its header says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.tensors = _read_header(path, file.read(8), size, file.read)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"{path} cannot be read: {exc}", _REPAIR) from exc

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        """Rows [first, first + count) as a view on the file, (count, columns); a vector is one row."""
        import numpy as np

        columns = tensor.shape[-1]
        dtype = np.dtype(_READABLE[tensor.dtype])
        offset = tensor.start + first * columns * dtype.itemsize
        return np.frombuffer(self._map, dtype, count * columns, offset).reshape(count, columns)

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """Gives the pages of the tensor's first `rows` rows back, or memory would grow to the size of the file."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        end = tensor.start + rows * tensor.shape[-1] * DTYPES[tensor.dtype]
        if end > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)

    def close(self) -> None:
        with suppress(BufferError):  # a view is still alive, in a traceback for instance; the map goes with it
            self._map.close()


def _read_header(path: Path, prefix: bytes, size: int, read: Any) -> dict[str, SourceTensor]:
    """`prefix` is the file's first eight bytes, `size` its length, `read(n)` gives what follows."""
    if len(prefix) < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors file", _REPAIR)
    length = int.from_bytes(prefix, "little")
    if length > size - 8:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: its header should have {length:,} bytes, "
            f"the file has {size:,}",
            _REPAIR,
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} has a header of {length:,} bytes, more than {MAX_HEADER:,}", _REPAIR)
    entries = _parse(path, read(length))
    entries.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    _check_layout(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointError(f"the header of {path} names {key!r} twice", _REPAIR)
            result[key] = value
        return result

    try:
        entries = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"the header of {path} is not JSON: {exc}", _REPAIR) from exc
    if not isinstance(entries, dict):
        raise CheckpointError(f"the header of {path} is not a JSON object", _REPAIR)
    return entries


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> SourceTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{path}: the header entry of {name!r} lacks dtype, shape or offsets", _REPAIR) from exc
    if not sound or not isinstance(dtype, str) or dtype not in DTYPES or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{path}: the header entry of {name!r} is malformed: {str(entry)[:200]}", _REPAIR)
    expected = prod(shape) * DTYPES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: {name!r} is {dtype} {list(shape)} and needs {expected:,} bytes, "
            f"its offsets [{begin}, {end}] hold {end - begin:,}",
            _REPAIR,
        )
    return SourceTensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _check_layout(path: Path, tensors: list[SourceTensor], data_start: int, size: int) -> None:
    """The data must follow each other without gap or overlap and end with the file, as safetensors itself demands."""
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != position:
            what = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: {tensor.name!r} {what}: it starts at byte {tensor.start:,}, not at {position:,}", _REPAIR
            )
        position += tensor.bytes
    if position != size:
        what = "is truncated" if position > size else "has bytes that no tensor owns"
        raise CheckpointError(f"{path} {what}: its header describes {position:,} bytes, it has {size:,}", _REPAIR)
