"""Conversions between numpy's arrays and MLX's. The only module of this package that imports MLX."""

from __future__ import annotations

import platform
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from localqwen.errors import EngineUnavailable

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Elements per slice: large enough that calls do not count, small enough that memory stays low.
SLICE = 1 << 22


def as_mlx(rows: NDArray[Any], dtype: str) -> Any:
    """Return rows as an MLX array. numpy has no bfloat16, so BF16 rows hold its bits."""
    import numpy as np

    mx = library()
    array = mx.array(np.require(rows, requirements=["C", "A"]))  # a header of odd length shifts what follows
    if dtype == "BF16":
        array = array.view(mx.bfloat16)
    return array


def as_numpy(array: Any) -> NDArray[Any]:
    """Return a copy of an MLX array's numbers; bfloat16 becomes its bits."""
    import numpy as np

    mx = library()
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


@cache
def library() -> Any:
    """Return mlx.core. Raise EngineUnavailable if MLX is missing or does not load."""
    try:
        import mlx.core as mx
    except (ImportError, OSError) as exc:
        raise EngineUnavailable(f"converting to MLX needs mlx, which does not load: {exc}", _install_hint()) from exc
    return mx


def _install_hint() -> str:
    """Return how to install MLX; without a GPU that is another package, which packs the same numbers."""
    if sys.platform == "darwin":
        return "pip install mlx" if platform.machine() == "arm64" else "MLX needs Apple Silicon; --to gguf runs here"
    return "pip install 'mlx[cpu]'"
