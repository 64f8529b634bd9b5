"""llama.cpp's own quantizer, `ggml_quantize_chunk`, called through ctypes. It knows nothing of files.

It is in libggml-base, which the `llama_cpp` package ships. That library is loaded alone: it needs neither the rest of
llama.cpp nor the half second of importing the bindings, and it computes no matrix product, so that processors on which
those fail can still convert.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localqwen.errors import ConversionError, EngineUnavailable
from localqwen.formats.dtypes import DType
from localqwen.machine import set_openmp_defaults

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAMES = {
    "linux": ("libggml-base.so",),
    "darwin": ("libggml-base.dylib", "libggml-base.so"),
    "win32": ("ggml-base.dll", "libggml-base.dll"),
}
_HINT = "pip install --force-reinstall llama-cpp-python"


def quantize(
    rows: NDArray[np.float32], kind: DType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Return `rows` (count, columns) as rows of blocks (count, kind.row_bytes(columns)). Releases the GIL.

    Rows do not influence each other, so that a matrix may come in slices. `importance` has a number for each column.
    Raise ConversionError, and EngineUnavailable if llama.cpp is missing.
    """
    import numpy as np

    count, columns = rows.shape
    result = np.empty((count, kind.row_bytes(columns)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = library().ggml_quantize_chunk(
        kind.number, rows.ctypes.data, result.ctypes.data, 0, count, columns, weights
    )
    if written != result.nbytes:
        raise ConversionError(f"llama.cpp wrote {written:,} bytes of {kind.name} where {result.nbytes:,} belong", _HINT)
    return result


def dequantize(rows: NDArray[Any], kind: DType, columns: int) -> NDArray[np.float32]:
    """Return rows of blocks, (count, kind.row_bytes(columns)), as the float32 numbers they encode, (count, columns)."""
    import numpy as np

    blocks = np.require(rows, np.uint8, ["C", "A"])
    result = np.empty((len(rows), columns), np.float32)
    _to_float(kind.number)(blocks.ctypes.data, result.ctypes.data, result.size)
    return result


class _Traits(ctypes.Structure):
    """ggml.h: ggml_type_traits, up to the last field used here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def _to_float(number: int) -> Any:
    traits = library().ggml_get_type_traits(number).contents
    if not traits.is_quantized or not traits.to_float:
        raise EngineUnavailable(f"this llama.cpp cannot read its type {number} as numbers", _HINT)
    return traits.to_float


@cache
def library() -> Any:
    """Return ggml's base library. Raise EngineUnavailable if llama_cpp is missing or does not load."""
    set_openmp_defaults()
    lib = _load()
    try:
        lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,  # ggml_type
            ctypes.c_void_p,  # source, float32
            ctypes.c_void_p,  # destination
            ctypes.c_int64,  # first element, a whole number of rows
            ctypes.c_int64,  # rows
            ctypes.c_int64,  # elements per row
            ctypes.c_void_p,  # importance matrix
        ]
        lib.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    except AttributeError as exc:
        raise EngineUnavailable(f"this llama.cpp has no quantizer to call: {exc}", _HINT) from exc
    return lib


def _load() -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineUnavailable("quantizing needs llama.cpp, which is not installed", "pip install llama-cpp-python")
    override = os.environ.get("LLAMA_CPP_LIB_PATH")  # llama_cpp itself obeys it
    folder = Path(override) if override else Path(spec.origin).parent / "lib"
    for name in _NAMES.get(sys.platform, _NAMES["linux"]):
        if (folder / name).exists():
            try:
                return ctypes.CDLL(str(folder / name))
            except OSError as exc:
                raise EngineUnavailable(f"llama.cpp does not load: {exc}", _HINT) from exc
    return _linked_into_llama()


def _linked_into_llama() -> Any:
    """Return the library of a build that has everything in one; the bindings keep it open."""
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineUnavailable(f"llama.cpp does not load: {exc}", _HINT) from exc
    return bindings._lib
