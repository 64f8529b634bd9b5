"""Compare `localqwen bench` with llama.cpp's own llama-bench: the same file, threads and settings, in turns.

    python benchmarks/llama_bench.py FILE.gguf --llama-bench path/to/llama-bench --threads 2

Build llama-bench from the revision inside llama-cpp-python. The script runs it with the settings of our engine (plain
attention, 256 tokens per pass; README.md says why). Each test is a separate command, because llama-bench creates a
context of the right size for each test, and decoding is about 5 % faster in a context of 256 cells than in one of
1,024. The script prints the medians of the rounds, and the median and range of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from localqwen.machine import OPENMP_DEFAULTS

Test = tuple[int, int, int]  # n_prompt, n_gen, n_depth


def ours(arguments: argparse.Namespace, test: Test) -> float:
    """Return the tokens per second that `localqwen bench` reports."""
    prompt, generate, depth = test
    return speed([
        sys.executable, "-m", "localqwen", "bench", str(arguments.model), "--json", "--llama-bench", "--no-save",
        "--prompt", str(prompt), "--generate", str(generate), "--depth", str(depth),
        "--threads", str(arguments.threads), "--repeats", str(arguments.repeats),
    ])  # fmt: skip


def theirs(arguments: argparse.Namespace, test: Test) -> float:
    """Return the tokens per second that llama-bench reports."""
    prompt, generate, depth = test
    return speed([
        str(arguments.llama_bench), "-m", str(arguments.model), "-o", "json", "-fa", "0", "-b", "256", "-ub", "256",
        "-p", str(prompt), "-n", str(generate), "-d", str(depth),
        "-t", str(arguments.threads), "-r", str(arguments.repeats),
    ])  # fmt: skip


def speed(command: list[str]) -> float:
    """Return the mean tokens per second of one test. Both programs get the same settings of OpenMP."""
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={**OPENMP_DEFAULTS, **os.environ})
    (test,) = json.loads(ran.stdout)
    return float(test["avg_ts"])


def compared(arguments: argparse.Namespace, test: Test) -> str:
    """Measure one test with both programs in turns, and return its line of the table. Each round begins with the other
    program."""
    mine, other = [], []
    for number in range(arguments.rounds):
        for side in ((ours, theirs), (theirs, ours))[number % 2]:
            (mine if side is ours else other).append(side(arguments, test))
    ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
    prompt, generate, depth = test
    name = (f"prefill {prompt}" if prompt else f"decode {generate}") + (f" at {depth}" if depth else "")
    middle, spread = statistics.median(ratios), f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    return f"| {name} | {statistics.median(mine):.1f} | {statistics.median(other):.1f} | {middle:.3f} | {spread} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depths", default="0,512")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    print("| test | localqwen bench | llama-bench | ratio | of the rounds |\n|---|---|---|---|---|")
    for depth in map(int, arguments.depths.split(",")):
        for test in ((arguments.prompt, 0, depth), (0, arguments.generate, depth)):
            print(compared(arguments, test), flush=True)


if __name__ == "__main__":
    main()
