"""The ggml types that are written here: numbers, blocks, bytes. Pure: touches no weights and no library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """A ggml type: its number in GGUF files, and how many bytes a block of how many elements takes."""

    name: str
    number: int
    block: int
    block_bytes: int

    def fits(self, columns: int) -> bool:
        return columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        return columns // self.block * self.block_bytes

    @property
    def quantised(self) -> bool:
        return self.block > 1


F32 = TensorType("F32", 0, 1, 4)
F16 = TensorType("F16", 1, 1, 2)
BF16 = TensorType("BF16", 30, 1, 2)
Q4_0 = TensorType("Q4_0", 2, 32, 18)
Q4_1 = TensorType("Q4_1", 3, 32, 20)
Q5_0 = TensorType("Q5_0", 6, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 32, 24)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
Q2_K = TensorType("Q2_K", 10, 256, 84)
Q3_K = TensorType("Q3_K", 11, 256, 110)
Q4_K = TensorType("Q4_K", 12, 256, 144)
Q5_K = TensorType("Q5_K", 13, 256, 176)
Q6_K = TensorType("Q6_K", 14, 256, 210)
IQ4_NL = TensorType("IQ4_NL", 20, 32, 18)
IQ4_XS = TensorType("IQ4_XS", 23, 256, 136)
MXFP4 = TensorType("MXFP4", 39, 32, 17)

_ALL = (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4)
#: By the name that llama.cpp prints, in lower case.
TYPES = {kind.name.lower(): kind for kind in _ALL}
