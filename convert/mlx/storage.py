"""MLX folders as sources: their packed weights become matrices under their official names.

mx.dequantize computes the numbers, while they are read. A stack of experts becomes one matrix per expert again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convert.mlx import arrays
from convert.mlx.schemes import Packing
from convert.sources.pieces import Matrix, Piece, Pieces
from localqwen.errors import CheckpointError, ConversionError
from localqwen.formats import dtypes
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "give a folder that mlx_lm or localqwen wrote"


def decoded(quantization: Any, pieces: Pieces) -> dict[str, Matrix]:
    """Return every tensor by its official name. `quantization` is config.json's, None for a folder in 16 bit.

    Raise CheckpointError, and EngineUnavailable if MLX is missing.
    """
    result: dict[str, Matrix] = {}
    for name, piece in pieces.items():
        if name.endswith((".scales", ".biases")):
            continue
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in pieces:
            result |= _whole(path, name, piece)
            continue
        for official, packed in _packed(path, pieces, _packing(quantization, path)):
            result[official] = (packed.tensor(official), packed)
    return result


def _packing(quantization: Any, path: str) -> Packing:
    """Return the packing of a weight, its own or the usual one; the default mode is affine (mlx-lm: quantize_model)."""
    own = quantization.get(path, quantization) if isinstance(quantization, Mapping) else None
    if not isinstance(own, Mapping) or type(own.get("bits")) is not int or type(own.get("group_size")) is not int:
        raise CheckpointError(f"config.json does not say how {path} is packed", _HINT)
    return Packing(own["group_size"], own["bits"], str(own.get("mode", "affine")))


def _names(path: str, experts: int) -> list[str]:
    """Return the official names of a weight: `mlp.switch_mlp.up_proj` holds all `mlp.experts.N.up_proj`."""
    before, stacked, after = path.partition(".switch_mlp.")
    if not stacked:
        return [f"{path}.weight"]
    return [f"{before}.experts.{expert}.{after}.weight" for expert in range(experts)]


def _whole(path: str, name: str, piece: Piece) -> dict[str, Matrix]:
    tensor = piece.tensor
    if ".switch_mlp." not in path or len(tensor.shape) != 3:
        return {name: (tensor, piece.file)}
    size = tensor.bytes // tensor.shape[0]
    return {
        official: (SourceTensor(official, tensor.dtype, tensor.shape[1:], tensor.start + i * size, size), piece.file)
        for i, official in enumerate(_names(path, tensor.shape[0]))
    }


@dataclass(frozen=True)
class _Packed:
    """A packed matrix, or one of a stack, which begins at row `begin` of the stored tensors."""

    weight: Piece
    scales: Piece
    biases: Piece | None
    packing: Packing
    begin: int
    shape: tuple[int, int]

    def tensor(self, name: str) -> SourceTensor:
        """Return the matrix's description under its official name."""
        dtype = dtypes.TORCH[str(self._numbers(0, 1).dtype).rpartition(".")[2]]
        return SourceTensor(name, dtype.name, self.shape, 0, self.shape[0] * dtype.row_bytes(self.shape[1]))

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        return arrays.as_numpy(self._numbers(first, count))

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        if rows >= self.shape[0]:
            self.weight.file.forget(self.weight.tensor, self.begin + rows)

    def _numbers(self, first: int, count: int) -> Any:
        mx = arrays.library()
        weight, scales, biases = (
            arrays.as_mlx(piece.rows(self.begin + first, count), piece.tensor.dtype) if piece else None
            for piece in (self.weight, self.scales, self.biases)
        )
        packing = self.packing
        try:
            return mx.dequantize(weight, scales, biases, packing.group_size, packing.bits, mode=packing.mode)
        except (ValueError, RuntimeError, TypeError) as exc:
            raise ConversionError(
                f"this MLX does not unpack {packing.bits} bits in groups of {packing.group_size} ({packing.mode}): "
                f"{str(exc).splitlines()[0]}",
                "pip install --upgrade mlx",
            ) from exc


def _packed(path: str, pieces: Pieces, packing: Packing) -> Iterator[tuple[str, _Packed]]:
    weight, scales, biases = pieces[f"{path}.weight"], pieces[f"{path}.scales"], pieces.get(f"{path}.biases")
    shape = weight.tensor.shape
    columns = shape[-1] * 32 // packing.bits if packing.bits > 0 else 0
    if weight.tensor.dtype != "U32" or len(shape) not in (2, 3) or not all(shape):
        raise CheckpointError(f"{path}.weight is {weight.tensor.dtype} {list(shape)}, not a packed matrix", _HINT)
    expected = (*shape[:-1], columns // packing.group_size if packing.group_size > 0 else 0)
    for part in (scales, biases):
        if part is not None and part.tensor.shape != expected:
            raise CheckpointError(
                f"{part.tensor.name} has shape {list(part.tensor.shape)}, the packing makes it {list(expected)}", _HINT
            )
    experts, rows = (shape[0], shape[1]) if len(shape) == 3 else (1, shape[0])
    for expert, official in enumerate(_names(path, experts)):
        yield official, _Packed(weight, scales, biases, packing, expert * rows, (rows, columns))
