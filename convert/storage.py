"""How quantised checkpoints store a matrix, and what numbers it stands for: FP8 in blocks, AWQ, GPTQ.

`decoded` turns their tensors into official names whose rows are float32, made while they are read, a slice at a time.
Nothing else of the converter knows of it. Layouts: DeepSeek's block-wise FP8 (weight, weight_scale_inv), AutoAWQ's gemm
(qweight, qzeros, scales), AutoGPTQ's (the same and g_idx), as `quantization_config` of config.json names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from localqwen.errors import CheckpointError
from localqwen.formats.tensors import SourceTensor, TensorFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HINT = "convert the original bf16 checkpoint"
_DAMAGED = "download the checkpoint again"
#: AutoAWQ packs eight columns into an int32; the i-th four bits hold column ORDER[i].
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
METHODS = ("fp8", "awq", "gptq")


@dataclass(frozen=True)
class Piece:
    """A tensor as the file has it. All of it is read at once only where it is small."""

    file: TensorFile
    tensor: SourceTensor

    def rows(self, first: int, count: int) -> NDArray[Any]:
        return self.file.rows(self.tensor, first, count)

    def all(self) -> NDArray[Any]:
        return self.rows(0, self.tensor.rows)

    def forget(self) -> None:
        self.file.forget(self.tensor, self.tensor.rows)


Pieces = Mapping[str, Piece]
Matrix = tuple[SourceTensor, TensorFile]


def decoded(settings: Any, pieces: Pieces) -> dict[str, Matrix]:
    """Every tensor of a checkpoint by its official name. `settings` is config.json's quantization_config.

    Raises CheckpointError for a method that is not known, and where shapes do not fit each other.
    """
    method = settings.get("quant_method", "of an unknown kind") if isinstance(settings, Mapping) else "of no known kind"
    make: Callable[[str, Pieces, Mapping[str, Any]], _Fp8 | _Awq | _Gptq]
    match method:
        case "fp8":
            ending, make = ".weight_scale_inv", _fp8
        case "awq" if settings.get("version", "gemm") == "gemm" and settings.get("bits") == 4:
            ending, make = ".qweight", _awq
        case "gptq" if settings.get("bits") in (4, 8):
            ending, make = ".qweight", _gptq
        case _:
            known = "FP8 in blocks, AWQ (4 bit, gemm) and GPTQ (4 and 8 bit)"
            raise CheckpointError(f"the weights are quantised ({method}) in a way that is not read: {known} are", _HINT)
    bases = [name.removesuffix(ending) for name in pieces if name.endswith(ending)]
    if not bases:
        raise CheckpointError(f"config.json says {method}, but no tensor is stored so", _HINT)
    result: dict[str, Matrix] = {}
    taken: set[str] = set()
    for base in bases:
        parts = {name: pieces[name] for part in _PARTS if (name := f"{base}.{part}") in pieces}
        file = make(base, {name.removeprefix(f"{base}."): piece for name, piece in parts.items()}, settings)
        result[f"{base}.weight"] = (_matrix(base, *file.shape), file)
        taken |= parts.keys()
    whole = {name: (piece.tensor, piece.file) for name, piece in pieces.items() if name not in taken}
    return whole | result


_PARTS = ("weight", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx")


def _matrix(base: str, rows: int, columns: int) -> SourceTensor:
    return SourceTensor(f"{base}.weight", "F32", (rows, columns), 0, 4 * rows * columns)


def _part(base: str, parts: Pieces, name: str, *dtypes: str) -> Piece:
    piece = parts.get(name)
    if piece is None:
        raise CheckpointError(f"{base}.{name} is missing", _DAMAGED)
    if piece.tensor.dtype not in dtypes:
        raise CheckpointError(f"{base}.{name} is {piece.tensor.dtype}, not {' or '.join(dtypes)}", _HINT)
    return piece


def _expect(base: str, name: str, piece: Piece, shape: tuple[int, ...]) -> None:
    if piece.tensor.shape != shape or not all(shape):
        raise CheckpointError(
            f"{base}.{name} has shape {list(piece.tensor.shape)}, the other parts make it {list(shape)}", _DAMAGED
        )


def _floats(piece: Piece, rows: NDArray[Any]) -> NDArray[np.float32]:
    from convert.encode import to_float32

    return to_float32(rows, piece.tensor.dtype)


# FP8


@dataclass(frozen=True)
class _Fp8:
    """Eight-bit floats; each block of `block` rows and columns shares a factor."""

    weight: Piece
    scale: Piece
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.tensor.shape

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        import numpy as np

        height, width = self.block
        begin, end = first // height, (first + count - 1) // height + 1
        factors = _floats(self.scale, self.scale.rows(begin, end - begin))
        values: NDArray[Any] = _e4m3()[self.weight.rows(first, count)]
        values *= np.repeat(factors[np.arange(first, first + count) // height - begin], width, 1)[:, : self.shape[1]]
        return values

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        self.weight.file.forget(self.weight.tensor, rows)


def _fp8(base: str, parts: Pieces, settings: Mapping[str, Any]) -> _Fp8:
    block = settings.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(side) is int and side > 0 for side in block)):
        raise CheckpointError(f"config.json: weight_block_size is {block!r}, not two numbers", _HINT)
    weight = _part(base, parts, "weight", "F8_E4M3")
    scale = _part(base, parts, "weight_scale_inv", "BF16", "F32", "F16")
    if len(weight.tensor.shape) != 2:
        raise CheckpointError(f"{base}.weight has shape {list(weight.tensor.shape)}, not rows and columns", _DAMAGED)
    blocks = tuple(-(-size // side) for size, side in zip(weight.tensor.shape, block, strict=True))
    _expect(base, "weight_scale_inv", scale, blocks)
    return _Fp8(weight, scale, (block[0], block[1]))


@cache
def _e4m3() -> NDArray[np.float32]:
    """The numbers of all 256 codes: sign, four bits of exponent with bias 7, three of mantissa; no infinity."""
    import numpy as np

    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7) / 8
    values = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    values = np.where(codes & 127 == 127, np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float32)


# AWQ and GPTQ: matrices lie with the inputs as rows, so that our rows are their columns.


@dataclass(frozen=True)
class _Packed:
    """What AWQ and GPTQ share: integers, and for each group of inputs and each output a zero point and a factor."""

    qweight: Piece
    qzeros: Piece
    scales: Piece
    shape: tuple[int, int]

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """A slice touches pages of the whole matrix, so they go with the last one."""
        if rows >= tensor.rows:
            for piece in (self.qweight, self.qzeros, self.scales):
                piece.forget()

    def factors(self, first: int, count: int) -> NDArray[np.float32]:
        return _floats(self.scales, self.scales.all()[:, first : first + count])


@dataclass(frozen=True)
class _Awq(_Packed):
    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        import numpy as np

        positions = [_AWQ_ORDER.index(column) for column in range(8)]
        numbers = _columns(self.qweight.all(), first, count, 4, positions)
        zeros = _columns(self.qzeros.all(), first, count, 4, positions)
        groups = len(zeros)
        grouped = numbers.reshape(groups, -1, count) - zeros[:, None]
        values = grouped.astype(np.float32) * self.factors(first, count)[:, None]
        return np.ascontiguousarray(values.reshape(-1, count).T)


@dataclass(frozen=True)
class _Gptq(_Packed):
    """`g_idx` gives the group of each input; without it they follow each other. `add` is what zero points lack."""

    bits: int
    g_idx: Piece | None
    add: int

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        import numpy as np

        positions = range(32 // self.bits)
        packed = self.qweight.all()[:, first : first + count].view(np.uint32)
        shifts = np.array([self.bits * position for position in positions], np.uint32)[None, :, None]
        numbers = ((packed[:, None] >> shifts) & ((1 << self.bits) - 1)).reshape(-1, count).astype(np.int32)
        zeros = (_columns(self.qzeros.all(), first, count, self.bits, positions) + self.add) & ((1 << self.bits) - 1)
        group = self._groups(len(zeros))
        values = (numbers - zeros[group]).astype(np.float32) * self.factors(first, count)[group]
        return np.ascontiguousarray(values.T)

    def _groups(self, count: int) -> NDArray[Any]:
        import numpy as np

        inputs = self.shape[1]
        if self.g_idx is None:
            return np.arange(inputs) // (inputs // count)
        groups = self.g_idx.all().reshape(-1)
        if groups.min() < 0 or groups.max() >= count:
            raise CheckpointError(f"{self.g_idx.tensor.name} names groups beyond the {count} there are", _DAMAGED)
        return groups


def _columns(packed: NDArray[Any], first: int, count: int, bits: int, positions: Any) -> NDArray[Any]:
    """Columns [first, first + count) of integers packed along the rows; column j of a pack lies at `positions[j]`."""
    import numpy as np

    pack = 32 // bits
    begin, end = first // pack, -(-(first + count) // pack)
    shifts = np.array([bits * position for position in positions], np.uint32)
    values = (packed[:, begin:end].view(np.uint32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(len(packed), -1)[:, first - begin * pack :][:, :count].astype(np.int32)


def _awq(base: str, parts: Pieces, settings: Mapping[str, Any]) -> _Awq:
    qweight, qzeros, scales = _triple(base, parts)
    inputs, outputs = qweight.tensor.shape[0], 8 * qweight.tensor.shape[1]
    groups = _group_count(base, inputs, settings)
    _expect(base, "qzeros", qzeros, (groups, outputs // 8))
    _expect(base, "scales", scales, (groups, outputs))
    return _Awq(qweight, qzeros, scales, (outputs, inputs))


def _gptq(base: str, parts: Pieces, settings: Mapping[str, Any]) -> _Gptq:
    """Zero points are stored less one in the first format of the checkpoints ("gptq"), as they are in "gptq_v2".

    A stored zero point of all ones is read as 0 that has wrapped, as llama.cpp's converter does; of AutoGPTQ's kernels
    some do, and some read it as one beyond the largest number. No symmetric quantisation, such as Qwen's, has it.
    """
    qweight, qzeros, scales = _triple(base, parts)
    bits = settings["bits"]
    pack = 32 // bits
    inputs, outputs = pack * qweight.tensor.shape[0], qweight.tensor.shape[1]
    groups = _group_count(base, inputs, settings)
    _expect(base, "qzeros", qzeros, (groups, outputs // pack))
    _expect(base, "scales", scales, (groups, outputs))
    g_idx = _part(base, parts, "g_idx", "I32") if "g_idx" in parts else None
    if g_idx is not None:
        _expect(base, "g_idx", g_idx, (inputs,))
    add = 0 if settings.get("checkpoint_format", "gptq") == "gptq_v2" else 1
    return _Gptq(qweight, qzeros, scales, (outputs, inputs), bits, g_idx, add)


def _triple(base: str, parts: Pieces) -> tuple[Piece, Piece, Piece]:
    qweight, qzeros = _part(base, parts, "qweight", "I32"), _part(base, parts, "qzeros", "I32")
    if len(qweight.tensor.shape) != 2 or not all(qweight.tensor.shape):
        raise CheckpointError(f"{base}.qweight has shape {list(qweight.tensor.shape)}, not a matrix's", _DAMAGED)
    return qweight, qzeros, _part(base, parts, "scales", "F16", "BF16", "F32")


def _group_count(base: str, inputs: int, settings: Mapping[str, Any]) -> int:
    size = settings.get("group_size")
    size = inputs if size == -1 else size
    if type(size) is not int or size < 1 or inputs % size:
        raise CheckpointError(f"config.json: groups of {size!r} do not divide the {inputs} inputs of {base}", _HINT)
    return inputs // size
