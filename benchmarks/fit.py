"""Compare the prediction of models/fit.py with the memory that a process needs, on GGUF files of the real dimensions.

    python benchmarks/random_checkpoint.py 0.6b build/qwen3-0.6b-random
    localqwen convert build/qwen3-0.6b-random --quant q8_0 --out build/0.6B-Q8_0.gguf
    python benchmarks/fit.py build/0.6B-Q8_0.gguf …

For each number a separate process opens the engine and fills the whole context. The script measures its largest RSS
(VmHWM on Linux), including Python and mapped weights: once with the weights as they are in the file, which is what the
process needs; and once with llama.cpp's repacking of 4-bit weights, where the originals stay mapped beside the copies
until the system takes that memory back.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from pathlib import Path

GENERATED = 4


def measure(path: Path, context: int, kv: str, *, repack: bool) -> int:
    """Return the bytes that a child process takes."""
    command = [sys.executable, __file__, str(path), "--child", str(context), "--kv", kv, *(["--repack"] * repack)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def child(path: Path, context: int, kv: str, *, repack: bool) -> None:
    """Open the engine, fill the context, and print the peak memory."""
    from localqwen.engines.engine import Sampling
    from localqwen.engines.llama_cpp.engine import OwnModelEngine
    from localqwen.engines.llama_cpp.settings import Settings
    from localqwen.machine import usable_cores

    engine = OwnModelEngine(path, Settings(usable_cores(), use_extra_bufts=repack, kv_type=kv), context_length=context)
    run = engine.start([1000 + n % 1000 for n in range(context - GENERATED)], Sampling(seed=1), max_tokens=GENERATED)
    while not run.finished:
        engine.step()
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--kv", nargs="+", default=["f16"], choices=["f16", "q8_0", "q4_0"])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repack", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.files[0], arguments.child, arguments.kv[0], repack=arguments.repack)
        return
    from localqwen.formats import model_header
    from localqwen.models import fit

    print("| file | kv | context | predicted MB | measured MB | error | repacked MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for path, kv, context in itertools.product(arguments.files, arguments.kv, arguments.contexts):
        predicted = fit.needed_bytes(model_header.read(path), context, kv)
        measured = measure(path, context, kv, repack=False)
        repacked = f"{measure(path, context, kv, repack=True) / 1e6:,.0f}" if context == arguments.contexts[0] else ""
        numbers = f"{predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {predicted / measured - 1:+.1%}"
        print(f"| {path.stem} | {kv} | {context:,} | {numbers} | {repacked} |", flush=True)


if __name__ == "__main__":
    main()
