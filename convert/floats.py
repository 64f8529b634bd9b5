"""float32, float16 and bfloat16: conversions between them, and the check that values fit the type of the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from localqwen.errors import CheckpointError
from localqwen.formats.dtypes import BF16, F16, F32, MXFP4, DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: As unsigned numbers: the bits of the magnitude, the first magnitude that is not finite, the largest that float16
#: can hold. IEEE 754 floats of one sign are ordered like their bits, and integers compare fast.
_BITS = {
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000, 0x477FE000),
    "F16": ("<u2", 0x7FFF, 0x7C00, 0x7BFF),
    "BF16": ("<u2", 0x7FFF, 0x7F80, 0x477F),
}


def check_values(rows: NDArray[Any], name: str, dtype: str, kind: DType) -> None:
    """Raise CheckpointError for values that are not finite, or too large for `kind`.

    Quantizers refuse the first; float16 numbers and scales reach 65,504.
    """
    unsigned, magnitude, infinite, half_limit = _BITS[dtype]
    largest = (rows.view(unsigned) & magnitude).max()
    if largest >= infinite:
        raise CheckpointError(f"{name} holds weights that are NaN or infinite", "download the checkpoint again")
    if largest > half_limit and kind not in (F32, BF16, MXFP4):
        raise CheckpointError(
            f"{name} holds weights beyond 65,504, the limit of {kind.name}",
            "convert to bf16, or check where this checkpoint comes from",
        )


def to_float32(rows: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return rows of one of the three types as float32, exact and aligned; bfloat16 is the upper half of one."""
    import numpy as np

    if dtype == "BF16":
        widened: NDArray[np.float32] = np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
        return widened
    return np.require(rows, np.float32, ["C", "A"])


def _to_bfloat16(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Round to nearest, ties to even (ggml-impl.h: ggml_compute_fp32_to_bf16)."""
    import numpy as np

    bits = rows.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_float32(rows: NDArray[np.float32], kind: DType) -> NDArray[Any]:
    """Return rows in an unquantized type."""
    return _FROM_FLOAT32[kind](rows)


_FROM_FLOAT32: dict[DType, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    F32: lambda rows: rows,
    F16: lambda rows: rows.astype("<f2"),
    BF16: _to_bfloat16,
}
