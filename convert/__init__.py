"""Convert official Qwen3 checkpoints to files that run here.

`convert(folder, out, quant="q4_k_m")` writes a GGUF file, `convert_to_mlx(folder, out, bits=4)` an MLX folder, both in
one pass: each tensor is read by memory map, quantized by llama.cpp's or MLX's own code and written, in slices of rows.
Memory does not grow with the model, and there is no intermediate file. Each result has a manifest: sources, recipe,
versions, digests.

    options.py        what a conversion takes and returns
    official.py       quantized weights -> the official layout in 16 bit
    adapter_files.py  LoRA adapters as files for the engines
    floats.py         float32, float16 and bfloat16
    ggml.py           llama.cpp's quantizer, called through ctypes
    sources/          what is read: checkpoint folders, quantized weights, adapters
    gguf/             GGUF files
    mlx/              MLX folders
    imatrix/          importance matrices
    output/           what is written: files and folders, whole or not at all; digests, manifests, forecasts

Of localqwen the package imports only `formats`, `errors`, `machine` and the version. It raises
`localqwen.errors.ConversionError` and its subclasses, EngineUnavailable if llama.cpp or MLX is missing, and UsageError
for a quantization that MLX does not have; each has a hint.
"""

from __future__ import annotations

from convert.adapter_files import adapter_for_llama_cpp, adapter_for_mlx
from convert.gguf import quants
from convert.gguf.conversion import convert, forecast_gguf, merge, plan
from convert.mlx import schemes as mlx_schemes
from convert.mlx.conversion import convert_to_mlx, forecast_mlx
from convert.official import dequantize
from convert.options import Options, Progress, Report
from convert.output.manifest import record_quality

__all__ = [
    "OWNER",
    "QUANTIZATIONS",
    "Options",
    "Progress",
    "Report",
    "adapter_for_llama_cpp",
    "adapter_for_mlx",
    "convert",
    "convert_to_mlx",
    "dequantise",
    "dequantize",
    "forecast_gguf",
    "forecast_mlx",
    "merge",
    "mlx_schemes",
    "plan",
    "quants",
    "record_quality",
]

#: Tells this package from another one named `convert` that comes earlier on the import path.
OWNER = "localqwen"
QUANTIZATIONS: tuple[str, ...] = tuple(quants.QUANTIZATIONS)
#: The older spelling, kept for its callers.
dequantise = dequantize
