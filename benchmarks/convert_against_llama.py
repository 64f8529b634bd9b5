"""Compare conversions with llama.cpp's own converter and quantizer, tensor by tensor and key by key.

    pip download llama-cpp-python==0.3.36 --no-binary :all: --no-deps --no-build-isolation
    python benchmarks/convert_against_llama.py llama_cpp_python-0.3.36.tar.gz

The archive contains the converter of the revision whose library is installed; it needs torch and transformers. The
script converts the demo model and small random checkpoints, dense and a mixture. The converter writes bf16 and f16; the
library's quantizer makes the other formats from the bf16 file. `--record` writes the sha256 of llama.cpp's tensors to
tests/vectors/conversions.json; the tests compare our tensors with it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from checkpoints import Shape, make_checkpoint  # noqa: E402

import convert  # noqa: E402
from convert.gguf.quants import QUANTIZATIONS  # noqa: E402

VECTORS = ROOT / "tests" / "vectors" / "conversions.json"
CONVERTED, QUANTIZED = ("bf16", "f16"), ("q8_0", "q4_0", "q4_k_m", "q6_k")
#: Known differences that no loader reads: what llama.cpp's converter guesses without a model card.
IGNORED = ("GGUF.", "general.name", "general.basename", "general.size_label", "general.finetune", "general.version")
#: What the loader assumes if the key is missing (llama-vocab.cpp); the converter may write it anyway.
ASSUMED = {"tokenizer.ggml.add_eos_token": False}
#: The converter recognizes tokenizers by a hash and does not know that of ours: this program tells it the name.
CONVERTER = """
import sys
from pathlib import Path
vendor = sys.argv[1]
sys.path[:0] = [vendor, vendor + "/gguf-py"]
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
import convert_hf_to_gguf
sys.argv = ["convert", sys.argv[2], "--outtype", sys.argv[3], "--outfile", sys.argv[4]]
convert_hf_to_gguf.main()
"""


def checkpoints(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the demo model and the random checkpoints, with their names."""
    yield "demo", ROOT / "localqwen" / "demo"
    yield "dense", make_checkpoint(folder / "dense", Shape(layers=9))
    yield "mixture", make_checkpoint(folder / "mixture", Shape(layers=9, tied=False, experts=3))


def theirs(vendor: Path, source: Path, folder: Path) -> dict[str, Path]:
    """Return the files that llama.cpp writes from the checkpoint, by quantization."""
    made = {quant: folder / f"theirs-{quant}.gguf" for quant in (*CONVERTED, *QUANTIZED)}
    for quant in CONVERTED:
        command = [sys.executable, "-c", CONVERTER, str(vendor), str(source), quant, str(made[quant])]
        subprocess.run(command, check=True, capture_output=True)
    for quant in QUANTIZED:
        quantize(made["bf16"], made[quant], QUANTIZATIONS[quant].file_type)
    return made


def quantize(source: Path, target: Path, file_type: int, threads: int = 1) -> None:
    """Quantize a GGUF file with the library of llama.cpp."""
    from llama_cpp import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp did not quantize {source}")


def tensors(path: Path) -> dict[str, str]:
    """Return the sha256 of type, shape and data of each tensor, by name."""
    return {
        tensor.name: hashlib.sha256(
            f"{tensor.tensor_type.name} {list(map(int, tensor.shape))} ".encode() + tensor.data.tobytes()
        ).hexdigest()
        for tensor in gguf.GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file, by key."""
    fields = gguf.GGUFReader(path).fields
    return ASSUMED | {key: field.contents() for key, field in fields.items() if not key.startswith(IGNORED)}


def digest(hashes: dict[str, str]) -> str:
    """Return one hash for all tensors, whatever their order in the file."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def compare(name: str, ours: Path, other: Path, quant: str) -> bool:
    """Print a line of the table and the differences; return whether there are none."""
    mine, yours = tensors(ours), tensors(other)
    equal = [key for key in yours if mine.get(key) == yours[key]]
    keys, their_keys = metadata(ours), metadata(other)
    differing = sorted(key for key in keys.keys() | their_keys.keys() if keys.get(key) != their_keys.get(key))
    print(f"| {name} | {quant} | {len(equal)} of {len(yours)} | {', '.join(differing) or 'equal'} |")
    return mine == yours and not differing


def main() -> int:
    """Compare the checkpoints, or record llama.cpp's tensors."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("archive", type=Path, help="llama_cpp_python-….tar.gz, or the folder it was unpacked to")
    arguments.add_argument("--record", action="store_true", help=f"write {VECTORS.relative_to(ROOT)}")
    given = arguments.parse_args()
    good, recorded = True, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vendor = unpacked(given.archive, folder)
        print("| checkpoint | quantization | tensors equal | other metadata |\n| --- | --- | ---: | --- |")
        for name, source in checkpoints(folder):
            made = theirs(vendor, source, folder)
            recorded[name] = {quant: digest(tensors(path)) for quant, path in made.items()}
            for quant, path in made.items():
                ours = folder / "ours.gguf"
                convert.convert(source, ours, quant=quant, threads=1, force=True)
                good &= compare(name, ours, path, quant)
    if given.record:
        VECTORS.write_text(json.dumps(recorded, indent=2) + "\n")
    return int(not good)


def unpacked(archive: Path, folder: Path) -> Path:
    """Return the folder of llama.cpp inside an archive of llama-cpp-python, or inside an unpacked one."""
    if archive.is_dir():
        root = archive
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder / "archive", filter="data")
        root = folder / "archive"
    found = sorted(root.rglob("convert_hf_to_gguf.py"))
    if not found:
        sys.exit(f"{archive} holds no converter of llama.cpp")
    return found[0].parent


if __name__ == "__main__":
    sys.exit(main())
