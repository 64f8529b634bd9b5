"""Seconds, processor seconds and peak memory of converting, beside `cp` and llama.cpp's converter and quantiser.

    python benchmarks/random_checkpoint.py 0.6b build/qwen3-0.6b-random
    python benchmarks/convert_speed.py build/qwen3-0.6b-random [--llama FOLDER] [--runs 3]

FOLDER is the source of llama.cpp inside the archive of llama-cpp-python; without it only our own commands run. Each
command is a process of its own, after one run that warms the page cache; medians are printed. Keep the machine idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from convert_against_llama import CONVERTER

ROOT = Path(__file__).parents[1]
OURS = """
import sys
from pathlib import Path
import convert
convert.convert(Path(sys.argv[1]), Path(sys.argv[2]), quant=sys.argv[3], threads=2, force=True)
"""
QUANTISER = """
import sys
sys.path.insert(0, sys.argv[1])
from convert_against_llama import quantise
from pathlib import Path
quantise(Path(sys.argv[2]), Path(sys.argv[3]), 15, threads=2)
"""


@dataclass(frozen=True)
class Run:
    """Wall seconds, user and system seconds, and the peak of resident bytes that the process had."""

    seconds: float
    processor: float
    peak: int


def measure(command: list[str]) -> Run:
    """Forks directly, so that the peak is the command's own. Fails as the command does."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"failed: {' '.join(command)[:300]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def median(command: list[str], runs: int) -> Run:
    measure(command)
    found = [measure(command) for _ in range(runs)]
    return Run(
        statistics.median(run.seconds for run in found),
        statistics.median(run.processor for run in found),
        max(run.peak for run in found),
    )


def commands(source: Path, folder: Path, llama: Path | None) -> dict[str, list[str]]:
    """In an order in which each finds what it reads."""
    python = [sys.executable, "-c"]
    result = {
        "cp": ["cp", "-r", str(source), str(folder / "copy")],
        "localqwen convert --quant bf16": [*python, OURS, str(source), str(folder / "ours.gguf"), "bf16"],
        "localqwen convert --quant q4_k_m": [*python, OURS, str(source), str(folder / "ours.gguf"), "q4_k_m"],
    }
    if llama is not None:
        base = str(folder / "theirs.gguf")
        result["llama.cpp's converter, bf16"] = [*python, CONVERTER, str(llama), str(source), "bf16", base]
        result["llama.cpp's quantiser, Q4_K_M"] = [
            *python, QUANTISER, str(Path(__file__).parent), base, str(folder / "q4.gguf"),
        ]  # fmt: skip
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--llama", type=Path)
    arguments.add_argument("--runs", type=int, default=3)
    given = arguments.parse_args()
    print("| command | seconds | processor seconds | peak memory |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=given.checkpoint.parent) as folder:
        for name, command in commands(given.checkpoint, Path(folder), given.llama).items():
            run = median(command, given.runs)
            print(f"| `{name}` | {run.seconds:.1f} | {run.processor:.1f} | {run.peak / 1e6:,.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
