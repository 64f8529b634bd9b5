"""Record how the authors of AWQ, GPTQ and FP8 checkpoints read their numbers: tests/vectors/quantized.safetensors.

    pip download --no-deps --no-build-isolation --no-binary :all: autoawq==0.2.9 auto-gptq==0.7.1     # and unpack both
    python tools/quantized_vectors.py autoawq-0.2.9 auto_gptq-0.7.1

AutoAWQ, AutoGPTQ and transformers quantize and pack random matrices and turn them into float32 again; none of this is
our code. Only their modules for a CPU are loaded. Per case the file has the stored tensors under `CASE.matrix`, and
under `CASE.expected` the numbers that these libraries read, (outputs, inputs). Needs torch, transformers and
safetensors.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VECTORS = Path(__file__).parents[1] / "tests" / "vectors" / "quantized.safetensors"
OUTPUTS, INPUTS, GROUP, BLOCK = 32, 64, 32, 16
Tensors = dict[str, torch.Tensor]


def without_init(root: Path, package: str) -> None:
    """Let modules of `package` be imported without its `__init__`, which imports libraries for a GPU."""
    module = types.ModuleType(package)
    module.__path__ = [str(root / package.replace(".", "/"))]
    sys.modules[package] = module


def quantized(bits: int, groups: torch.Tensor) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """Return a layer whose weights are exact in `bits`; scales and zero points, (groups, outputs). No zero point is 0.

    AutoGPTQ stores zero points less one; where that is negative, its own kernels disagree.
    """
    count = INPUTS // GROUP
    numbers = torch.randint(0, 1 << bits, (INPUTS, OUTPUTS))
    zeros = torch.randint(1, 1 << bits, (count, OUTPUTS))
    scales = (torch.rand(count, OUTPUTS) * 0.01 + 0.001).half().float()
    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    layer.weight.data = ((numbers - zeros[groups]) * scales[groups]).t().contiguous()
    return layer, scales, zeros


def awq(root: Path) -> dict[str, Tensors]:
    """Return the tensors of one AWQ matrix, and AutoAWQ's reading of it."""
    for package in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        without_init(root, package)
    device = types.ModuleType("awq.utils.utils")  # the packing reads only its device
    device.__dict__["get_best_device"] = lambda: "cpu"
    sys.modules["awq.utils.utils"] = device
    gemm: Any = importlib.import_module("awq.modules.linear.gemm")
    packing: Any = importlib.import_module("awq.utils.packing_utils")
    layer, scales, zeros = quantized(4, torch.arange(INPUTS) // GROUP)
    packed = gemm.WQLinear_GEMM.from_linear(layer, 4, GROUP, scales=scales, zeros=zeros)
    read = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, GROUP)
    stored = {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
    return {"awq": stored | {"expected": read.t()}}


def gptq(root: Path) -> dict[str, Tensors]:
    """Return the tensors of one GPTQ matrix, and AutoGPTQ's reading of it."""
    for package in ("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear"):
        without_init(root, package)
    module: Any = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda")
    cases = {}
    in_order = torch.arange(INPUTS) // GROUP
    for name, bits, groups in (
        ("gptq_int4", 4, in_order),
        ("gptq_int8", 8, in_order),
        ("gptq_act_order", 4, in_order[torch.randperm(INPUTS)]),
    ):
        layer, scales, zeros = quantized(bits, groups)
        packed = module.QuantLinear(bits, GROUP, INPUTS, OUTPUTS, False, weight_dtype=torch.float32)
        packed.pack(layer, scales.t(), zeros.t(), groups.int())
        read = packed(torch.eye(INPUTS))  # a unit vector as input reads one column
        stored = {part: getattr(packed, part) for part in ("qweight", "qzeros", "g_idx")}
        cases[name] = stored | {"scales": scales.half(), "expected": read.t()}
    return cases


def fp8() -> dict[str, Tensors]:
    """Return the tensors of one FP8 matrix, and the reading of transformers."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    settings = types.SimpleNamespace(weight_block_size=(BLOCK, BLOCK), scale_fmt="float")
    maker = types.SimpleNamespace(quantization_config=settings)
    written = Fp8Quantize(maker)._quantize_one("matrix.weight", torch.randn(OUTPUTS, INPUTS))
    weight, scale = written["matrix.weight"], written["matrix.weight_scale_inv"].bfloat16()  # as Qwen3-…-FP8 has it
    read = Fp8Dequantize(maker)._dequantize_one(weight, scale, output_dtype=torch.float32)
    return {"fp8": {"weight": weight, "weight_scale_inv": scale, "expected": read}}


def main() -> None:
    """Write tests/vectors/quantized.safetensors."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("autoawq", type=Path)
    arguments.add_argument("auto_gptq", type=Path)
    given = arguments.parse_args()
    torch.manual_seed(7)
    tensors = {}
    for case, parts in (awq(given.autoawq) | gptq(given.auto_gptq) | fp8()).items():
        for name, value in parts.items():
            place = f"{case}.expected" if name == "expected" else f"{case}.matrix.{name}"
            tensors[place] = value.detach().contiguous()
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    made_by = versions | {"autoawq": given.autoawq.name, "auto_gptq": given.auto_gptq.name}
    save_file(tensors, VECTORS, metadata=made_by)


if __name__ == "__main__":
    main()
