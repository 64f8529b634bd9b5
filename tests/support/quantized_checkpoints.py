"""Random checkpoints as their makers store them: FP8 in blocks, AWQ, GPTQ. Packed number by number, as documented.

Each function gives the folder and the exact numbers that each matrix stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Shape, as_dtype, config, make_checkpoint, weights, write_json, write_raw_safetensors
from numpy.typing import NDArray

Tensors = dict[str, tuple[str, NDArray[Any]]]
Exact = dict[str, NDArray[np.float64]]
DENSE = Shape()
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def write_mixed(path: Path, tensors: Tensors) -> None:
    """A safetensors file whose tensors have types of their own."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, values) in tensors.items():
        header[name] = {
            "dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes],
        }  # fmt: skip
        offset += values.nbytes
    write_raw_safetensors(path, header, b"".join(values.tobytes() for _, values in tensors.values()))


def _checkpoint(
    folder: Path, shape: Shape, settings: dict[str, Any], store: Callable[[str, tuple[int, int]], tuple[Tensors, Any]]
) -> tuple[Path, Exact]:
    """Every projection goes through `store`; embeddings, norms, routers and heads stay bf16."""
    make_checkpoint(folder, shape)
    write_json(folder / "config.json", config(shape) | {"quantization_config": settings})
    tensors: Tensors = {}
    exact: Exact = {}
    for name, values in weights(shape).items():
        if name.endswith("_proj.weight"):
            stored, numbers = store(name.removesuffix(".weight"), values.shape)
            tensors |= stored
            exact[name] = numbers
        else:
            tensors[name] = ("BF16", values)
    write_mixed(folder / "model.safetensors", tensors)
    return folder, exact


def e4m3(code: int) -> float:
    """OCP's 8-bit float with four bits of exponent, bias 7, three of mantissa; 0x7f is the only NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if code & 128 else value


def fp8_checkpoint(folder: Path, shape: Shape = DENSE, *, block: int = 128, seed: int = 3) -> tuple[Path, Exact]:
    """Qwen3-…-FP8: blocks of 128 x 128, the last ones cut, factors in bf16."""
    random = np.random.default_rng(seed)
    table = np.array([e4m3(code) for code in range(256)])

    def store(base: str, size: tuple[int, int]) -> tuple[Tensors, Any]:
        codes = random.integers(0, 256, size, np.uint8)
        codes[(codes & 127) == 127] = 0
        blocks = tuple(-(-side // block) for side in size)
        scales = as_dtype(random.uniform(1e-4, 4e-4, blocks).astype(np.float32), "BF16")
        factors = (scales.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        numbers = table[codes] * np.kron(factors, np.ones((block, block)))[: size[0], : size[1]]
        return {f"{base}.weight": ("F8_E4M3", codes), f"{base}.weight_scale_inv": ("BF16", scales)}, numbers

    settings = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [block, block],
    }  # fmt: skip
    return _checkpoint(folder, shape, settings, store)


def _pack(numbers: NDArray[Any], bits: int, order: list[int]) -> NDArray[np.int32]:
    """Integers along the last axis, 32 / bits into each int32; the i-th place of a pack holds number order[i]."""
    per = 32 // bits
    packed = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // per), np.uint32)
    for word in range(packed.shape[-1]):
        for place, number in enumerate(order):
            packed[..., word] |= numbers[..., word * per + number].astype(np.uint32) << np.uint32(bits * place)
    return packed.view(np.int32)


def awq_checkpoint(folder: Path, shape: Shape = DENSE, *, group: int = 64, seed: int = 4) -> tuple[Path, Exact]:
    """Qwen3-…-AWQ: matrices turned (inputs as rows), eight outputs in an int32 in AutoAWQ's order."""
    random = np.random.default_rng(seed)

    def store(base: str, size: tuple[int, int]) -> tuple[Tensors, Any]:
        outputs, inputs = size
        numbers, zeros = random.integers(0, 16, (inputs, outputs)), random.integers(0, 16, (inputs // group, outputs))
        scales = random.uniform(0.001, 0.01, (inputs // group, outputs)).astype(np.float16)
        exact = (numbers - np.repeat(zeros, group, 0)) * np.repeat(scales.astype(np.float64), group, 0)
        stored: Tensors = {
            f"{base}.qweight": ("I32", _pack(numbers, 4, AWQ_ORDER)),
            f"{base}.qzeros": ("I32", _pack(zeros, 4, AWQ_ORDER)),
            f"{base}.scales": ("F16", scales),
        }
        return stored, exact.T

    settings = {
        "bits": 4, "group_size": group, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm",
        "zero_point": True,
    }  # fmt: skip
    return _checkpoint(folder, shape, settings, store)


def gptq_checkpoint(
    folder: Path,
    shape: Shape = DENSE,
    *,
    bits: int = 4,
    group: int = 64,
    act_order: bool = False,
    second: bool = False,
    seed: int = 5,
) -> tuple[Path, Exact]:
    """Qwen3-…-GPTQ-Int4 and -Int8: inputs packed along the rows, zero points less one unless `second` (gptq_v2)."""
    random = np.random.default_rng(seed)
    straight = list(range(32 // bits))

    def store(base: str, size: tuple[int, int]) -> tuple[Tensors, Any]:
        outputs, inputs = size
        numbers = random.integers(0, 1 << bits, (inputs, outputs))
        zeros = random.integers(1, 1 << bits, (inputs // group, outputs))
        scales = random.uniform(0.0005, 0.005, (inputs // group, outputs)).astype(np.float16)
        groups = np.arange(inputs, dtype=np.int32) // group
        if act_order:
            random.shuffle(groups)
        exact = (numbers - zeros[groups]) * scales.astype(np.float64)[groups]
        stored: Tensors = {
            f"{base}.qweight": ("I32", np.ascontiguousarray(_pack(np.ascontiguousarray(numbers.T), bits, straight).T)),
            f"{base}.qzeros": ("I32", _pack(zeros - (0 if second else 1), bits, straight)),
            f"{base}.scales": ("F16", scales),
            f"{base}.g_idx": ("I32", groups),
        }
        return stored, exact.T

    settings = {
        "bits": bits, "checkpoint_format": "gptq_v2" if second else "gptq", "desc_act": act_order, "group_size": group,
        "lm_head": False, "quant_method": "gptq", "sym": False, "true_sequential": True,
    }  # fmt: skip
    return _checkpoint(folder, shape, settings, store)
