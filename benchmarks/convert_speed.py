"""Measure seconds, processor seconds and peak memory of converting, `cp`, and llama.cpp's converter and quantizer.

    python benchmarks/random_checkpoint.py 0.6b build/qwen3-0.6b-random
    python benchmarks/convert_speed.py build/qwen3-0.6b-random [--llama FOLDER] [--runs 3] [--cold]

FOLDER is the source of llama.cpp inside the archive of llama-cpp-python; without it only our own commands run. Each
command is a separate process and writes a new file; the commands take turns, and the script prints medians. A first
round warms the page cache; with --cold the checkpoint is dropped from the page cache before each run. `cp` ends when
its bytes are in the page cache; `convert` and `cp, sync` end when they are on the disk. Peak memory is the largest
resident set: anonymous memory and the pages of mapped files. Keep the machine idle.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
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
QUANTIZER = """
import sys
sys.path.insert(0, sys.argv[1])
from convert_against_llama import quantize
from pathlib import Path
quantize(Path(sys.argv[2]), Path(sys.argv[3]), 15, threads=2)
"""


@dataclass(frozen=True)
class Run:
    """Wall seconds, user and system seconds, and the peak of resident bytes that the process had."""

    seconds: float
    processor: float
    peak: int


def measure(command: list[str]) -> Run:
    """Run a command and measure it. Forks directly, so that the peak memory is that of the command. Exits if the
    command fails."""
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


def medians(each: dict[str, list[str]], folder: Path, cold: list[Path], runs: int) -> dict[str, Run]:
    """Run the commands in turns and return their medians. Each run reads the files `cold` from the disk; without any,
    the first round does not count."""
    found: dict[str, list[Run]] = {name: [] for name in each}
    for number in range(runs if cold else runs + 1):
        for name, command in each.items():
            clear(folder, but="theirs.gguf" if "quantizer" in name else "")
            for path in cold:
                drop(path)
            run = measure(command)
            if cold or number:
                found[name].append(run)
    return {
        name: Run(
            statistics.median(run.seconds for run in measured),
            statistics.median(run.processor for run in measured),
            max(run.peak for run in measured),
        )
        for name, measured in found.items()
    }


def clear(folder: Path, *, but: str) -> None:
    """Delete the outputs of an earlier run: replacing a file would add the time of freeing the old one."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != but:
            path.unlink()


def drop(path: Path) -> None:
    """Drop the files from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def commands(source: Path, folder: Path, llama: Path | None) -> dict[str, list[str]]:
    """Return the commands in an order in which each finds its input."""
    python = [sys.executable, "-c"]
    copy = ["cp", "-r", str(source), str(folder / "copy")]
    result = {
        "cp": copy,
        "cp, sync": ["sh", "-c", f"{shlex.join(copy)} && sync {shlex.quote(str(folder / 'copy'))}/*"],
        "localqwen convert --quant bf16": [*python, OURS, str(source), str(folder / "ours.gguf"), "bf16"],
        "localqwen convert --quant q4_k_m": [*python, OURS, str(source), str(folder / "ours.gguf"), "q4_k_m"],
    }
    if llama is not None:
        base = str(folder / "theirs.gguf")
        result["llama.cpp's converter, bf16"] = [*python, CONVERTER, str(llama), str(source), "bf16", base]
        result["llama.cpp's quantizer, Q4_K_M"] = [
            *python, QUANTIZER, str(Path(__file__).parent), base, str(folder / "q4.gguf"),
        ]  # fmt: skip
    return result


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("--llama", type=Path)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--cold", action="store_true")
    given = arguments.parse_args()
    cold = sorted(given.checkpoint.glob("*.safetensors")) if given.cold else []
    with tempfile.TemporaryDirectory(dir=given.checkpoint.parent) as name:
        folder = Path(name)
        found = medians(commands(given.checkpoint, folder, given.llama), folder, cold, given.runs)
    print("| command | seconds | / `cp` | processor seconds | peak memory |\n| --- | ---: | ---: | ---: | ---: |")
    for name, run in found.items():
        ratio = run.seconds / found["cp"].seconds
        print(f"| `{name}` | {run.seconds:.1f} | {ratio:.2f} | {run.processor:.1f} | {run.peak / 1e6:,.0f} MB |")


if __name__ == "__main__":
    main()
