"""`localqwen bench` beside llama.cpp's own llama-bench: the same file, threads and settings, taking turns.

    python benchmarks/llama_bench.py FILE.gguf --llama-bench path/to/llama-bench --threads 2

llama-bench should be built from the revision that llama-cpp-python brings. It is run with the settings of our engine
(plain attention, 256 tokens per pass; README.md says why), and once per round, as ours is. Printed are the medians of
the rounds and the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from localqwen.machine import OPENMP_DEFAULTS

Test = tuple[int, int, int]  # n_prompt, n_gen, n_depth


def ours(arguments: argparse.Namespace) -> dict[Test, float]:
    command = [
        sys.executable, "-m", "localqwen", "bench", str(arguments.model), "--json", "--llama-bench", "--no-save",
        "--prompt", str(arguments.prompt), "--generate", str(arguments.generate), "--depth", arguments.depth,
        "--threads", str(arguments.threads), "--repeats", str(arguments.repeats),
    ]  # fmt: skip
    return speeds(command)


def theirs(arguments: argparse.Namespace) -> dict[Test, float]:
    command = [
        str(arguments.llama_bench), "-m", str(arguments.model), "-o", "json", "-fa", "0", "-b", "256", "-ub", "256",
        "-p", str(arguments.prompt), "-n", str(arguments.generate), "-d", arguments.depth,
        "-t", str(arguments.threads), "-r", str(arguments.repeats),
    ]  # fmt: skip
    return speeds(command)


def speeds(command: list[str]) -> dict[Test, float]:
    """Mean tokens per second of each test. Both programs get the same settings of OpenMP."""
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={**OPENMP_DEFAULTS, **os.environ})
    tests: list[dict[str, Any]] = json.loads(told.stdout)
    return {(test["n_prompt"], test["n_gen"], test["n_depth"]): test["avg_ts"] for test in tests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", default="0,512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()

    found = []
    for number in range(arguments.rounds):  # who is first changes
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        told = {measure: measure(arguments) for measure in order}
        found.append((told[ours], told[theirs]))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    print("| test | localqwen bench | llama-bench | ratio |\n|---|---|---|---|")
    for test in found[0][0]:
        mine, other = ([side[test] for side in pair] for pair in zip(*found, strict=True))
        ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
        prompt, generate, depth = test
        name = (f"prefill {prompt}" if prompt else f"decode {generate}") + (f" at {depth}" if depth else "")
        print(f"| {name} | {statistics.median(mine):.1f} | {statistics.median(other):.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
