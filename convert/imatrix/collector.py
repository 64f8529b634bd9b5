"""The sums of squared inputs behind an importance matrix, collected while llama.cpp computes (as in tools/imatrix)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convert import ggml
from localqwen.formats.dtypes import F32

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FEWEST_ROWS = 16  # as in llama.cpp: smaller products are not of the text


class _Tensor(ctypes.Structure):
    """ggml.h: ggml_tensor, up to its name."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


@dataclass
class Sums:
    """The inputs of one tensor: their squares, summed by column, (experts, columns), and how many rows each expert had.

    A tensor that is not a stack of experts counts as one expert.
    """

    squares: NDArray[np.float64]
    rows: NDArray[np.int64]


@dataclass
class Collector:
    """The callback that sums the inputs of every matrix product in a layer, in `sums` by the tensor's GGUF name.

    llama.cpp calls it before (`ask`) and after every step. It cannot pass an exception on, so that stands in `failure`.
    """

    library: Any
    sums: dict[str, Sums] = field(default_factory=dict)
    failure: BaseException | None = None

    def __call__(self, address: int, ask: bool, _data: object) -> bool:
        try:
            step = _Tensor.from_address(address)
            kind = self.library.ggml_op_name(step.op).decode()
            if kind not in ("MUL_MAT", "MUL_MAT_ID"):
                return not ask
            weight, values = step.src[0].contents, step.src[1].contents
            wanted = weight.name.startswith(b"blk.") and values.type == F32.number
            if kind == "MUL_MAT":
                wanted = wanted and values.ne[1] >= _FEWEST_ROWS
            if ask or not wanted:
                return bool(wanted) if ask else True
            name = weight.name.decode().partition("#")[0]
            (self._dense if kind == "MUL_MAT" else self._experts)(name, step, weight.ne[2])
            return True
        except BaseException as exc:
            self.failure = exc
            return False

    def _dense(self, name: str, step: _Tensor, _: int) -> None:
        import numpy as np

        values = self._numbers(step.src[1], np.dtype(np.float32))
        rows = values.reshape(-1, values.shape[-1])
        self._add(name, 1, 0, rows)

    def _experts(self, name: str, step: _Tensor, experts: int) -> None:
        """Add the inputs (tokens, one or each chosen, columns) to the experts (tokens, chosen) that they went to."""
        import numpy as np

        values = self._numbers(step.src[1], np.dtype(np.float32))[0]
        chosen = self._numbers(step.src[2], np.dtype(np.int32))[0, 0]
        for place in range(chosen.shape[1]):
            inputs = values[:, place % values.shape[1]]
            for expert in np.unique(chosen[:, place]):
                self._add(name, experts, int(expert), inputs[chosen[:, place] == expert])

    def _numbers(self, tensor: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a copy of a tensor's numbers, whatever its backend and strides; ggml's last dimension comes first."""
        import numpy as np

        shape, strides = tuple(tensor.contents.ne)[::-1], tuple(tensor.contents.nb)[::-1]
        size = dtype.itemsize + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
        data = np.empty(size, np.uint8)
        self.library.ggml_backend_tensor_get(tensor, data.ctypes.data, 0, size)
        return np.ndarray(shape, dtype, data, 0, strides)

    def _add(self, name: str, experts: int, expert: int, rows: NDArray[Any]) -> None:
        import numpy as np

        if name not in self.sums:
            self.sums[name] = Sums(np.zeros((experts, rows.shape[-1])), np.zeros(experts, np.int64))
        self.sums[name].squares[expert] += np.square(rows, dtype=np.float64).sum(0)
        self.sums[name].rows[expert] += len(rows)


def base_library() -> Any:
    """Return ggml's library with the functions that a Collector calls. Raise EngineUnavailable if it is missing."""
    library = ggml.library()
    library.ggml_op_name.restype, library.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = [
        ctypes.POINTER(_Tensor), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
    ]  # fmt: skip
    return library
