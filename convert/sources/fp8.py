"""FP8 in blocks, as DeepSeek stores it: eight-bit floats in `weight`, a factor per block in `weight_scale_inv`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from convert.sources.pieces import DAMAGED, USE_ORIGINAL, Piece, Pieces, expect_shape, part
from localqwen.errors import CheckpointError
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Fp8:
    """A matrix of eight-bit floats; each block of `block` rows and columns shares a factor."""

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
        factors = self.scale.floats(self.scale.rows(begin, end - begin))
        values: NDArray[Any] = e4m3()[self.weight.rows(first, count)]
        values *= np.repeat(factors[np.arange(first, first + count) // height - begin], width, 1)[:, : self.shape[1]]
        return values

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        self.weight.file.forget(self.weight.tensor, rows)


def decoder(base: str, parts: Pieces, settings: Mapping[str, Any]) -> Fp8:
    """Return the matrix `base`. Raise CheckpointError if its parts do not fit each other."""
    block = settings.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(side) is int and side > 0 for side in block)):
        raise CheckpointError(f"config.json: weight_block_size is {block!r}, not two numbers", USE_ORIGINAL)
    weight = part(base, parts, "weight", "F8_E4M3")
    scale = part(base, parts, "weight_scale_inv", "BF16", "F32", "F16")
    if len(weight.tensor.shape) != 2:
        raise CheckpointError(f"{base}.weight has shape {list(weight.tensor.shape)}, not rows and columns", DAMAGED)
    blocks = tuple(-(-size // side) for size, side in zip(weight.tensor.shape, block, strict=True))
    expect_shape(base, "weight_scale_inv", scale, blocks)
    return Fp8(weight, scale, (block[0], block[1]))


@cache
def e4m3() -> NDArray[np.float32]:
    """Return the values of all 256 codes: sign, four bits of exponent with bias 7, three of mantissa; no infinity."""
    import numpy as np

    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, (codes & 7) / 8
    values = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    values = np.where(codes & 127 == 127, np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float32)
