"""The tensors from which a quantized matrix is decoded, and the checks that they fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convert.floats import to_float32
from localqwen.errors import CheckpointError
from localqwen.formats.tensors import SourceTensor, TensorFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

USE_ORIGINAL = "convert the original bf16 checkpoint"
DAMAGED = "download the checkpoint again"


@dataclass(frozen=True)
class Piece:
    """A stored tensor and its file."""

    file: TensorFile
    tensor: SourceTensor

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """Return rows [first, first + count), (count, columns)."""
        return self.file.rows(self.tensor, first, count)

    def all(self) -> NDArray[Any]:
        """Return all rows; for tensors that are small."""
        return self.rows(0, self.tensor.rows)

    def floats(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Return rows of this tensor, or a part of them, as float32."""
        return to_float32(rows, self.tensor.dtype)

    def forget(self) -> None:
        """Give back the memory of all rows."""
        self.file.forget(self.tensor, self.tensor.rows)


#: By the tensor's name; for one matrix, by the last part of it.
Pieces = Mapping[str, Piece]
#: A decoded tensor and where its rows come from.
Matrix = tuple[SourceTensor, TensorFile]


def part(base: str, parts: Pieces, name: str, *dtypes: str) -> Piece:
    """Return the tensor `base.name`. Raise CheckpointError if it is missing or has none of `dtypes`."""
    piece = parts.get(name)
    if piece is None:
        raise CheckpointError(f"{base}.{name} is missing", DAMAGED)
    if piece.tensor.dtype not in dtypes:
        raise CheckpointError(f"{base}.{name} is {piece.tensor.dtype}, not {' or '.join(dtypes)}", USE_ORIGINAL)
    return piece


def expect_shape(base: str, name: str, piece: Piece, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the tensor `base.name` has `shape`, without a zero."""
    if piece.tensor.shape != shape or not all(shape):
        raise CheckpointError(
            f"{base}.{name} has shape {list(piece.tensor.shape)}, the other parts make it {list(shape)}", DAMAGED
        )
