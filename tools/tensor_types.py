"""Record which type llama.cpp gives each tensor of models with many layers: tests/vectors/tensor_types.json.

    python tools/tensor_types.py

Runs llama.cpp's quantizer on each model of LAYERED in tests/support/checkpoints.py, in every quantization. This takes
half a minute, too long for a test; the types do not depend on the machine. Run it again with a new llama.cpp.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import gguf

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]

from checkpoints import LAYERED, make_checkpoint  # noqa: E402
from convert_against_llama import quantize  # noqa: E402

import convert  # noqa: E402
from convert.gguf import quants  # noqa: E402

VECTORS = ROOT / "tests" / "vectors" / "tensor_types.json"


def by_kind(types: Mapping[str, str]) -> dict[str, str]:
    """Return {"attn_v": "Q6_K Q4_K …"}: the type in each layer, in order; a single type stands for all layers."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, kind in types.items():
        if kind != "F32":
            found[name.removesuffix(".weight").rpartition(".")[2]].append(kind)
    return {name: kinds[0] if len(set(kinds)) == 1 else " ".join(kinds) for name, kinds in found.items()}


def read(path: Path) -> dict[str, str]:
    """Return the type of each tensor of a GGUF file."""
    return by_kind({tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors})


def main() -> None:
    """Write tests/vectors/tensor_types.json."""
    recorded: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, shape in LAYERED.items():
            source = make_checkpoint(folder / case, shape)
            base, target = folder / "base.gguf", folder / "a.gguf"
            convert.convert(source, base, quant="bf16", force=True)
            recorded[case] = {}
            for quant in quants.QUANTIZATIONS.values():
                if quant.base.quantized:
                    quantize(base, target, quant.file_type, threads=2)
                    recorded[case][quant.name] = read(target)
    VECTORS.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
