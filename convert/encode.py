"""Weights in the checkpoint's type -> bytes in the GGUF file's type, a slice of rows at a time, on several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convert import ggml
from convert.quants import TYPES
from localqwen.errors import CheckpointError
from localqwen.formats.dtypes import BF16, F16, F32, MXFP4, DType
from localqwen.formats.tensors import SourceTensor, TensorFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Elements per slice: small enough for a processor's cache, large enough that threads do not wait for each other.
SLICE = 1 << 19
#: As unsigned numbers: the bits of the magnitude, the first magnitude that is not finite, the largest that float16
#: can hold. IEEE 754 floats of one sign are ordered like their bits, and integers compare fast.
_BITS = {
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000, 0x477FE000),
    "F16": ("<u2", 0x7FFF, 0x7C00, 0x7BFF),
    "BF16": ("<u2", 0x7FFF, 0x7F80, 0x477F),
}


@dataclass(frozen=True)
class Part:
    """A tensor in its file; `importance`, one number per column, tells the quantiser which of them matter more."""

    file: TensorFile
    tensor: SourceTensor
    importance: NDArray[np.float32] | None = None


def encoded(
    parts: Sequence[Part], kind: DType, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The data of one tensor, stacked of `parts`, in order, as (slice, source bytes it was made from). At most `ahead`
    slices are alive.

    Raises CheckpointError for weights that are not finite or not in the type's range.
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
    """Some rows of a tensor."""

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
    piece.part.file.forget(tensor, piece.first + piece.count)  # not before: unquantised data are a view on the file


def _encode(piece: _Slice, kind: DType) -> NDArray[np.uint8]:
    import numpy as np

    tensor = piece.part.tensor
    rows: NDArray[Any] = piece.part.file.rows(tensor, piece.first, piece.count)
    stored = TYPES[tensor.dtype.lower()]
    if stored.quantized and stored is not kind:
        rows, stored = ggml.dequantise(rows, stored, tensor.shape[-1]), F32
    if not stored.quantized:
        check_values(rows, tensor.name, stored.name, kind)
    if stored is not kind:
        widened = to_float32(rows, stored.name)
        rows = ggml.quantise(widened, kind, piece.part.importance) if kind.quantized else from_float32(widened, kind)
    return rows.reshape(-1).view(np.uint8)


def check_values(rows: NDArray[Any], name: str, dtype: str, kind: DType) -> None:
    """Raises CheckpointError. Quantisers refuse what is not finite; float16 values and scales hold at most 65,504."""
    unsigned, magnitude, infinite, half_limit = _BITS[dtype]
    largest = (rows.view(unsigned) & magnitude).max()
    if largest >= infinite:
        raise CheckpointError(f"{name} holds weights that are NaN or infinite", "download the checkpoint again")
    if largest > half_limit and kind not in (F32, BF16, MXFP4):
        raise CheckpointError(
            f"{name} holds weights beyond 65,504, the reach of {kind.name}",
            "convert to bf16, or check where this checkpoint comes from",
        )


def to_float32(rows: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Exact for all three types: bfloat16 is the upper half of a float32. Aligned, as C code expects."""
    import numpy as np

    if dtype == "BF16":
        widened: NDArray[np.float32] = np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
        return widened
    return np.require(rows, np.float32, ["C", "A"])


def _to_bfloat16(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Rounds to nearest, ties to even (ggml-impl.h: ggml_compute_fp32_to_bf16)."""
    import numpy as np

    bits = rows.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_float32(rows: NDArray[np.float32], kind: DType) -> NDArray[Any]:
    """In a type that is no quantisation."""
    return _FROM_FLOAT32[kind](rows)


_FROM_FLOAT32: dict[DType, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    F32: lambda rows: rows,
    F16: lambda rows: rows.astype("<f2"),
    BF16: _to_bfloat16,
}
