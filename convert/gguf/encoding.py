"""Weights in the source's type become bytes of a GGUF type, a slice of rows at a time, on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convert import ggml
from convert.floats import check_values, from_float32, to_float32
from convert.gguf.quants import TYPES
from localqwen.formats.dtypes import F32, DType
from localqwen.formats.tensors import SourceTensor, TensorFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Elements per slice: small enough for a processor's cache, large enough that threads do not wait for each other.
SLICE = 1 << 19


@dataclass(frozen=True)
class Part:
    """A source tensor and its file.

    `importance`, one number per column, tells the quantizer which columns matter more.
    """

    file: TensorFile
    tensor: SourceTensor
    importance: NDArray[np.float32] | None = None


def encoded(
    parts: Sequence[Part], kind: DType, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yield the data of one GGUF tensor, the stack of `parts`, in order: slices, each with its bytes in the source.

    At most `ahead` slices are alive. Raise CheckpointError for weights that are not finite or too large for `kind`.
    """
    pending: deque[tuple[_Slice, Future[NDArray[np.uint8]]]] = deque()
    for piece in _slices(parts):
        pending.append((piece, pool.submit(_encode, piece, kind)))
        if len(pending) >= ahead:
            yield from _taken(pending)
    while pending:
        yield from _taken(pending)


@dataclass(frozen=True)
class _Slice:
    """`count` rows of a tensor from row `first`."""

    part: Part
    first: int
    count: int


def _slices(parts: Sequence[Part]) -> Iterator[_Slice]:
    for part in parts:
        rows = part.tensor.rows
        step = max(1, SLICE // part.tensor.shape[-1])
        for first in range(0, rows, step):
            yield _Slice(part, first, min(step, rows - first))


def _taken(pending: deque[tuple[_Slice, Future[NDArray[np.uint8]]]]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    piece, future = pending.popleft()
    tensor = piece.part.tensor
    yield future.result(), piece.count * tensor.row_bytes
    piece.part.file.forget(tensor, piece.first + piece.count)  # not before: unquantized data are a view on the file


def _encode(piece: _Slice, kind: DType) -> NDArray[np.uint8]:
    import numpy as np

    tensor = piece.part.tensor
    rows: NDArray[Any] = piece.part.file.rows(tensor, piece.first, piece.count)
    stored = TYPES[tensor.dtype.lower()]
    if stored.quantized and stored is not kind:
        rows, stored = ggml.dequantize(rows, stored, tensor.shape[-1]), F32
    if not stored.quantized:
        check_values(rows, tensor.name, stored.name, kind)
    if stored is not kind:
        widened = to_float32(rows, stored.name)
        rows = ggml.quantize(widened, kind, piece.part.importance) if kind.quantized else from_float32(widened, kind)
    return rows.reshape(-1).view(np.uint8)
