"""Quantized checkpoints: the tensors of FP8, AWQ and GPTQ become matrices under their official names.

Their rows are float32, decoded while they are read, a slice at a time; the rest of the converter sees only those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from convert.sources import awq_gptq, fp8
from convert.sources.pieces import USE_ORIGINAL, Matrix, Piece, Pieces
from localqwen.errors import CheckpointError
from localqwen.formats.tensors import SourceTensor, TensorFile

#: The last part of every tensor's name that belongs to a quantized matrix.
PARTS = ("weight", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx")


class _Decoded(TensorFile, Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


#: The matrix's name, its parts, quantization_config -> where its decoded rows come from.
_Decoder = Callable[[str, Pieces, Mapping[str, Any]], _Decoded]


def decoded(settings: Any, pieces: Pieces) -> dict[str, Matrix]:
    """Return every tensor of a checkpoint by its official name. `settings` is config.json's quantization_config.

    Raise CheckpointError for an unknown method and for shapes that do not fit each other.
    """
    ending, decoder = _method(settings)
    bases = [name.removesuffix(ending) for name in pieces if name.endswith(ending)]
    if not bases:
        raise CheckpointError(f"config.json says {settings['quant_method']}, but no tensor is stored so", USE_ORIGINAL)
    result: dict[str, Matrix] = {}
    taken: set[str] = set()
    for base in bases:
        parts = _parts(base, pieces)
        file = decoder(base, parts, settings)
        result[f"{base}.weight"] = (_tensor(base, *file.shape), file)
        taken |= {f"{base}.{name}" for name in parts}
    unquantized = {name: (piece.tensor, piece.file) for name, piece in pieces.items() if name not in taken}
    return unquantized | result


def _method(settings: Any) -> tuple[str, _Decoder]:
    """Return how the name of each matrix's main part ends, and what decodes it."""
    method = settings.get("quant_method", "of an unknown kind") if isinstance(settings, Mapping) else "of no known kind"
    match method:
        case "fp8":
            return ".weight_scale_inv", fp8.decoder
        case "awq" if settings.get("version", "gemm") == "gemm" and settings.get("bits") == 4:
            return ".qweight", awq_gptq.awq_decoder
        case "gptq" if settings.get("bits") in (4, 8):
            return ".qweight", awq_gptq.gptq_decoder
    known = "FP8 in blocks, AWQ (4 bit, gemm) and GPTQ (4 and 8 bit)"
    raise CheckpointError(f"the weights are quantized ({method}); supported are {known}", USE_ORIGINAL)


def _parts(base: str, pieces: Pieces) -> dict[str, Piece]:
    return {part: pieces[f"{base}.{part}"] for part in PARTS if f"{base}.{part}" in pieces}


def _tensor(base: str, rows: int, columns: int) -> SourceTensor:
    return SourceTensor(f"{base}.weight", "F32", (rows, columns), 0, 4 * rows * columns)
