"""llama.cpp's own quantiser, `ggml_quantize_chunk`, called through ctypes. Knows nothing of files.

It lies in libggml-base, which the `llama_cpp` package ships. That library is loaded alone: it needs neither the rest of
llama.cpp nor the half second that importing the bindings takes, and it computes no matrix product, so that the
processors on which those fail can still convert.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.tensor_types import TensorType
from localqwen.errors import ConversionError, EngineUnavailable
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


def quantise(rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
    """`rows` (count, columns) as `count` rows of blocks, (count, kind.row_bytes(columns)). Releases the GIL.

    Rows do not influence each other, so a matrix may come in slices.
    """
    import numpy as np

    count, columns = rows.shape
    result = np.empty((count, kind.row_bytes(columns)), np.uint8)
    written = library().ggml_quantize_chunk(kind.number, rows.ctypes.data, result.ctypes.data, 0, count, columns, None)
    if written != result.nbytes:
        raise ConversionError(f"llama.cpp wrote {written:,} bytes of {kind.name} where {result.nbytes:,} belong", _HINT)
    return result


@cache
def library() -> Any:
    """Raises EngineUnavailable where llama_cpp is missing or does not load."""
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
    except AttributeError as exc:
        raise EngineUnavailable(f"this llama.cpp has no quantiser to call: {exc}", _HINT) from exc
    return lib


def _load() -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EngineUnavailable("quantising needs llama.cpp, which is not installed", "pip install llama-cpp-python")
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
    """A build with everything in one library: the bindings hold it open."""
    try:
        from llama_cpp import llama_cpp as bindings
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineUnavailable(f"llama.cpp does not load: {exc}", _HINT) from exc
    return bindings._lib
