"""The types of numbers in weight files: one table of their names, their ids in GGUF, and their sizes. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """A type of numbers: `block` elements share `block_bytes` bytes.

    `name` is that of safetensors and of llama.cpp. `number` is the id in GGUF files, None for a type that GGUF does not
    have. `torch` is the name in config.json and in MLX, "" if neither uses the type. `numpy` tells numpy how to read an
    element; bfloat16, which numpy does not have, and blocks are read as their bits.
    """

    name: str
    number: int | None
    block: int
    block_bytes: int
    numpy: str = "u1"
    torch: str = ""

    def fits(self, columns: int) -> bool:
        """Return whether rows of that many elements are whole blocks."""
        return columns % self.block == 0

    def row_bytes(self, columns: int) -> int:
        return columns // self.block * self.block_bytes

    @property
    def quantized(self) -> bool:
        """Whether several elements share a block, as in the quantizations of ggml."""
        return self.block > 1


F64 = DType("F64", 28, 1, 8, "<f8")
F32 = DType("F32", 0, 1, 4, "<f4", "float32")
F16 = DType("F16", 1, 1, 2, "<f2", "float16")
BF16 = DType("BF16", 30, 1, 2, "<u2", "bfloat16")
I64 = DType("I64", 27, 1, 8, "<i8")
I32 = DType("I32", 26, 1, 4, "<i4")
I16 = DType("I16", 25, 1, 2, "<i2")
I8 = DType("I8", 24, 1, 1, "i1")
_IN_BOTH = (F64, F32, F16, BF16, I64, I32, I16, I8)

F8_E4M3 = DType("F8_E4M3", None, 1, 1)
F8_E5M2 = DType("F8_E5M2", None, 1, 1)
F8_E8M0 = DType("F8_E8M0", None, 1, 1)
C64 = DType("C64", None, 1, 8, "<c8")
U64 = DType("U64", None, 1, 8, "<u8")
U32 = DType("U32", None, 1, 4, "<u4")
U16 = DType("U16", None, 1, 2, "<u2")
U8 = DType("U8", None, 1, 1)
BOOL = DType("BOOL", None, 1, 1)
_IN_SAFETENSORS = (F8_E4M3, F8_E5M2, F8_E8M0, C64, U64, U32, U16, U8, BOOL)

Q4_0 = DType("Q4_0", 2, 32, 18)
Q4_1 = DType("Q4_1", 3, 32, 20)
Q5_0 = DType("Q5_0", 6, 32, 22)
Q5_1 = DType("Q5_1", 7, 32, 24)
Q8_0 = DType("Q8_0", 8, 32, 34)
Q8_1 = DType("Q8_1", 9, 32, 40)
Q2_K = DType("Q2_K", 10, 256, 84)
Q3_K = DType("Q3_K", 11, 256, 110)
Q4_K = DType("Q4_K", 12, 256, 144)
Q5_K = DType("Q5_K", 13, 256, 176)
Q6_K = DType("Q6_K", 14, 256, 210)
Q8_K = DType("Q8_K", 15, 256, 292)
IQ2_XXS = DType("IQ2_XXS", 16, 256, 66)
IQ2_XS = DType("IQ2_XS", 17, 256, 74)
IQ3_XXS = DType("IQ3_XXS", 18, 256, 98)
IQ1_S = DType("IQ1_S", 19, 256, 50)
IQ4_NL = DType("IQ4_NL", 20, 32, 18)
IQ3_S = DType("IQ3_S", 21, 256, 110)
IQ2_S = DType("IQ2_S", 22, 256, 82)
IQ4_XS = DType("IQ4_XS", 23, 256, 136)
IQ1_M = DType("IQ1_M", 29, 256, 56)
TQ1_0 = DType("TQ1_0", 34, 256, 54)
TQ2_0 = DType("TQ2_0", 35, 256, 66)
MXFP4 = DType("MXFP4", 39, 32, 17)
NVFP4 = DType("NVFP4", 40, 64, 36)
Q1_0 = DType("Q1_0", 41, 128, 18)
_IN_GGUF = (
    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL,
    IQ3_S, IQ2_S, IQ4_XS, IQ1_M, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0,
)  # fmt: skip

_ALL = (*_IN_BOTH, *_IN_SAFETENSORS, *_IN_GGUF)
BY_NAME = {dtype.name: dtype for dtype in _ALL}
#: The types of safetensors files by name.
SAFETENSORS = {dtype.name: dtype for dtype in (*_IN_BOTH, *_IN_SAFETENSORS)}
#: The types of GGUF files by their id there.
GGUF = {dtype.number: dtype for dtype in (*_IN_BOTH, *_IN_GGUF) if dtype.number is not None}
#: The types that config.json names, by its names.
TORCH = {dtype.torch: dtype for dtype in _ALL if dtype.torch}
#: The types in which checkpoints store weights that are not quantized, by name.
FLOATS = {dtype.name: dtype for dtype in (F32, F16, BF16)}
