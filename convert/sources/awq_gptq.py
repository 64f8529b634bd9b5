"""AWQ and GPTQ: integers packed into int32, with a zero point and a factor for each group of inputs and each output.

The layouts are AutoAWQ's gemm (qweight, qzeros, scales) and AutoGPTQ's (the same and g_idx). Both store a matrix with
the inputs as rows, so that our rows are their columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convert.sources.pieces import DAMAGED, USE_ORIGINAL, Piece, Pieces, expect_shape, part
from localqwen.errors import CheckpointError
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: AutoAWQ packs eight columns into an int32; the i-th four bits hold column ORDER[i].
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Packed:
    """The storage that AWQ and GPTQ share; `shape` is that of the decoded matrix (outputs, inputs)."""

    qweight: Piece
    qzeros: Piece
    scales: Piece
    shape: tuple[int, int]

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """Give back the memory with the last row: every slice touches pages of the whole matrix."""
        if rows >= tensor.rows:
            for piece in (self.qweight, self.qzeros, self.scales):
                piece.forget()

    def factors(self, first: int, count: int) -> NDArray[np.float32]:
        """Return the factors of outputs [first, first + count), (groups, count)."""
        return self.scales.floats(self.scales.all()[:, first : first + count])


@dataclass(frozen=True)
class Awq(Packed):
    """A matrix of AWQ, four bits per number."""

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
class Gptq(Packed):
    """A matrix of GPTQ. `g_idx` gives the group of each input, in order if None; `add` corrects stored zero points."""

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
            raise CheckpointError(f"{self.g_idx.tensor.name} names groups beyond the {count} there are", DAMAGED)
        return groups


def _columns(packed: NDArray[Any], first: int, count: int, bits: int, positions: Any) -> NDArray[Any]:
    """Return columns [first, first + count) of integers packed along rows; column j of a pack is at `positions[j]`."""
    import numpy as np

    pack = 32 // bits
    begin, end = first // pack, -(-(first + count) // pack)
    shifts = np.array([bits * position for position in positions], np.uint32)
    values = (packed[:, begin:end].view(np.uint32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return values.reshape(len(packed), -1)[:, first - begin * pack :][:, :count].astype(np.int32)


def awq_decoder(base: str, parts: Pieces, settings: Mapping[str, Any]) -> Awq:
    """Return the matrix `base`. Raise CheckpointError if its parts do not fit each other."""
    qweight, qzeros, scales = _triple(base, parts)
    inputs, outputs = qweight.tensor.shape[0], 8 * qweight.tensor.shape[1]
    groups = _group_count(base, inputs, settings)
    expect_shape(base, "qzeros", qzeros, (groups, outputs // 8))
    expect_shape(base, "scales", scales, (groups, outputs))
    return Awq(qweight, qzeros, scales, (outputs, inputs))


def gptq_decoder(base: str, parts: Pieces, settings: Mapping[str, Any]) -> Gptq:
    """Return the matrix `base`. Raise CheckpointError if its parts do not fit each other.

    The first checkpoint format ("gptq") stores zero points less one, "gptq_v2" as they are. A stored zero point of all
    ones is read as 0 that has wrapped, as llama.cpp's converter does; some kernels of AutoGPTQ do that, others read it
    as one beyond the largest number. No symmetric quantization, such as Qwen's, has it.
    """
    qweight, qzeros, scales = _triple(base, parts)
    bits = settings["bits"]
    pack = 32 // bits
    inputs, outputs = pack * qweight.tensor.shape[0], qweight.tensor.shape[1]
    groups = _group_count(base, inputs, settings)
    expect_shape(base, "qzeros", qzeros, (groups, outputs // pack))
    expect_shape(base, "scales", scales, (groups, outputs))
    g_idx = part(base, parts, "g_idx", "I32") if "g_idx" in parts else None
    if g_idx is not None:
        expect_shape(base, "g_idx", g_idx, (inputs,))
    add = 0 if settings.get("checkpoint_format", "gptq") == "gptq_v2" else 1
    return Gptq(qweight, qzeros, scales, (outputs, inputs), bits, g_idx, add)


def _triple(base: str, parts: Pieces) -> tuple[Piece, Piece, Piece]:
    """Return qweight, qzeros and scales, after checking their types."""
    qweight, qzeros = part(base, parts, "qweight", "I32"), part(base, parts, "qzeros", "I32")
    if len(qweight.tensor.shape) != 2 or not all(qweight.tensor.shape):
        raise CheckpointError(f"{base}.qweight has shape {list(qweight.tensor.shape)}, not a matrix's", DAMAGED)
    return qweight, qzeros, part(base, parts, "scales", "F16", "BF16", "F32")


def _group_count(base: str, inputs: int, settings: Mapping[str, Any]) -> int:
    """Return the number of groups of inputs. Raise CheckpointError unless they divide the inputs."""
    size = settings.get("group_size")
    size = inputs if size == -1 else size
    if type(size) is not int or size < 1 or inputs % size:
        raise CheckpointError(
            f"config.json: groups of {size!r} do not divide the {inputs} inputs of {base}", USE_ORIGINAL
        )
    return inputs // size
