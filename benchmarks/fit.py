"""What models/fit.py predicts against what a process really takes, on GGUF files of the real dimensions.

    python benchmarks/random_checkpoint.py 0.6b build/qwen3-0.6b-random
    localqwen convert build/qwen3-0.6b-random --quant q8_0 --out build/0.6b-Q8_0.gguf
    python benchmarks/fit.py build/0.6b-Q8_0.gguf …  > benchmarks/fit.md

Each row is a process of its own that opens the engine, takes a prompt of 600 tokens (more than one batch of 512) and
decodes 8. Measured is the most memory it ever had in RAM (VmHWM on Linux), Python and all, mapped weights included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

CONTEXTS = (1024, 4096, 16384, 32768)
PROMPT, GENERATED = 600, 8


def measure(path: Path, context: int) -> int:
    """Bytes, in a child process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(context), str(path)], capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def child(path: Path, context: int) -> None:
    from localqwen import engines
    from localqwen.engines import Sampling

    engine = engines.open(path, context_length=context, threads=1, force=True)
    run = engine.start([1000 + n % 1000 for n in range(PROMPT)], Sampling(seed=1), max_tokens=GENERATED)
    while not run.finished:
        engine.step()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.files[0], arguments.child)
        return
    from localqwen.models import fit, gguf_header

    print("| file | context | predicted MB | measured MB | error |\n| --- | ---: | ---: | ---: | ---: |")
    for path in arguments.files:
        for context in CONTEXTS:
            predicted = fit.needed_bytes(gguf_header.read(path), context)
            measured = measure(path, context)
            error = predicted / measured - 1
            print(
                f"| {path.stem} | {context:,} | {predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {error:+.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
