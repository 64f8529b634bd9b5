"""What a quantisation is called, and which type each tensor gets in it. Pure: touches no weights and no library.

The rules are those of llama.cpp (llama-quant.cpp: llama_tensor_get_type), for Qwen3 and without an importance matrix,
so that a file has the types that `llama-quantize` would give it.
"""

from __future__ import annotations

from dataclasses import dataclass

from convert.config import Config


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
Q5_0 = TensorType("Q5_0", 6, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 32, 24)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
Q4_K = TensorType("Q4_K", 12, 256, 144)
Q5_K = TensorType("Q5_K", 13, 256, 176)
Q6_K = TensorType("Q6_K", 14, 256, 210)


@dataclass(frozen=True)
class Quantization:
    """A kind of file: `file_type` is its number in `general.file_type`, `base` the type of most of its matrices."""

    name: str
    file_type: int
    base: TensorType


QUANTIZATIONS = {
    each.name: each
    for each in (
        Quantization("f32", 0, F32),
        Quantization("f16", 1, F16),
        Quantization("bf16", 32, BF16),
        Quantization("q8_0", 7, Q8_0),
        Quantization("q6_k", 18, Q6_K),
        Quantization("q5_k_m", 17, Q5_K),
        Quantization("q5_k_s", 16, Q5_K),
        Quantization("q5_0", 8, Q5_0),
        Quantization("q4_k_m", 15, Q4_K),
        Quantization("q4_k_s", 14, Q4_K),
        Quantization("q4_0", 2, Q4_0),
    )
}

_QUANTISED = [name for name, each in QUANTIZATIONS.items() if each.base.quantised]
#: Where rows do not divide into blocks of 256, the type with blocks of 32 that takes over (tensor_type_fallback).
_FALLBACK = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}


#: Among exactly eight experts, attention is small and gets more bits: kind -> quantisation -> type.
_OF_EIGHT_EXPERTS = {
    "attn_k": dict.fromkeys(_QUANTISED, Q8_0),
    "attn_v": dict.fromkeys(_QUANTISED, Q8_0),
    "attn_output": {"q4_k_m": Q5_K, "q4_k_s": Q5_K},
}


def tensor_type(quantization: Quantization, name: str, shape: tuple[int, ...], config: Config) -> TensorType:
    """The type of the tensor with this GGUF `name` and `shape` (rows, columns)."""
    if len(shape) < 2 or name.endswith(("_norm.weight", ".ffn_gate_inp.weight")):
        return F32
    if not quantization.base.quantised:
        return quantization.base
    columns = shape[-1]
    if name == "output.weight" or (config.tied and name == "token_embd.weight"):
        wanted = _output_type(quantization.base, columns)
    else:
        wanted = _layer_type(quantization, name, config)
    return _fitting(wanted, columns)


def _output_type(base: TensorType, columns: int) -> TensorType:
    """The head stays better than the rest; tied embeddings are the head too."""
    if base is Q8_0 or not base.fits(columns):
        return Q8_0
    return Q6_K


def _layer_type(quantization: Quantization, name: str, config: Config) -> TensorType:
    """attn_v and ffn_down gain most from more bits, and some layers more than others."""
    kind, layers = name.removesuffix(".weight").removesuffix("_exps").rpartition(".")[2], config.layers
    if config.experts == 8 and kind in _OF_EIGHT_EXPERTS:
        return _OF_EIGHT_EXPERTS[kind].get(quantization.name, quantization.base)
    if kind not in ("attn_v", "ffn_down"):
        return quantization.base
    layer = int(name.split(".")[1])
    if quantization.name in ("q4_k_m", "q5_k_m") and _more_bits(layer, layers):
        return Q6_K
    if quantization.name == "q4_k_s" and layer < (4 if kind == "attn_v" else layers // 8):
        return Q5_K
    return quantization.base


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third layer between (llama-quant.cpp: use_more_bits)."""
    eighth = layers // 8
    # The remainder of a negative number has another sign in C, but there the first test is already true.
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: TensorType, columns: int) -> TensorType:
    if not wanted.fits(columns):
        wanted = _FALLBACK.get(wanted, wanted)
    return wanted if wanted.fits(columns) else F16
