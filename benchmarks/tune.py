"""Compare the choice of `localqwen tune` with every thread setting of llama.cpp's own llama-bench, on the same file.

    python benchmarks/tune.py FILE.gguf --llama-bench path/to/llama-bench

Each round runs llama-bench with each number of threads and `localqwen bench` with the tuned settings; every second
round runs in reverse order. Both compute a prompt and decode an answer. llama-bench gets the attention, tokens per pass
and OpenMP settings of our engine (README.md says why); `--defaults` keeps its own. Run the script on an idle machine.
Tuning happens in a temporary folder, so the user's settings stay. The last line is the goal: tuned / best of
llama-bench.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from localqwen.machine import OPENMP_DEFAULTS, usable_cores

Speeds = tuple[float, float]  # tokens per second: prefill, decode
OURS = "localqwen, tuned"


def environment(home: str) -> dict[str, str]:
    """Return the environment of the commands, with a separate home folder."""
    return {**OPENMP_DEFAULTS, **os.environ, "LOCALQWEN_HOME": home}


def tune(arguments: argparse.Namespace, home: str) -> dict[str, Any]:
    """Run `localqwen tune`, and return its choice."""
    command = [sys.executable, "-m", "localqwen", "tune", str(arguments.model), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(home))
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def ours(arguments: argparse.Namespace, home: str) -> Speeds:
    """Return the speeds of `localqwen bench` without --threads: the engine uses the tuned settings. There are two
    commands, because llama-bench also creates a context for each test."""
    command = [
        sys.executable, "-m", "localqwen", "bench", str(arguments.model), "--llama-bench", "--no-save",
        "--repeats", str(arguments.repeats),
    ]  # fmt: skip
    sizes = (str(arguments.prompt), "0"), ("0", str(arguments.generate))
    tests = [
        tests_of([*command, "--prompt", prompt, "--generate", answer], environment(home)) for prompt, answer in sizes
    ]
    return speeds([test for each in tests for test in each])


def theirs(arguments: argparse.Namespace, home: str, threads: int) -> Speeds:
    """Return the speeds of llama-bench with `threads` threads."""
    command = [
        str(arguments.llama_bench), "-m", str(arguments.model), "-o", "json", "-t", str(threads),
        "-p", str(arguments.prompt), "-n", str(arguments.generate), "-r", str(arguments.repeats),
    ]  # fmt: skip
    plain = [] if arguments.defaults else ["-fa", "0", "-b", "256", "-ub", "256"]
    return speeds(tests_of([*command, *plain], environment(home)))


def tests_of(command: list[str], variables: dict[str, str]) -> list[dict[str, Any]]:
    """Return the JSON that a command prints."""
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    tests: list[dict[str, Any]] = json.loads(ran.stdout)
    return tests


def speeds(tests: list[dict[str, Any]]) -> Speeds:
    """Return the speeds of prefill and decode in a report of llama-bench."""
    prefill, decode = (next(test["avg_ts"] for test in tests if test[key]) for key in ("n_prompt", "n_gen"))
    return prefill, decode


def measured(arguments: argparse.Namespace, home: str) -> dict[str, list[Speeds]]:
    """Return the speeds of each setting in each round; each round begins with another setting."""
    counts = [int(count) for count in arguments.threads.split(",")] if arguments.threads else []
    cases = {f"llama-bench -t {count}": count for count in counts or range(1, usable_cores() + 1)}
    found: dict[str, list[Speeds]] = {name: [] for name in (OURS, *cases)}
    for number in range(arguments.rounds):
        for name in list(found)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(ours(arguments, home) if name == OURS else theirs(arguments, home, cases[name]))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    return found


def ratio(found: dict[str, list[Speeds]], which: int) -> float:
    """Return the median ratio within a round: ours divided by the best setting over all rounds."""
    others = {name: rounds for name, rounds in found.items() if name != OURS}
    best = max(others, key=lambda name: statistics.median(each[which] for each in others[name]))
    return statistics.median(a[which] / b[which] for a, b in zip(found[OURS], others[best], strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--threads", help="of llama-bench, like 1,2; default: every number up to the cores")
    parser.add_argument("--defaults", action="store_true", help="llama-bench with its own attention and passes")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    with tempfile.TemporaryDirectory() as home:
        chosen = tune(arguments, home)["settings"]
        found = measured(arguments, home)
    print("| setting | prefill t/s | decode t/s |\n| --- | ---: | ---: |")
    for name, rounds in found.items():
        prefill, decode = (statistics.median(each[which] for each in rounds) for which in (0, 1))
        print(f"| {name} | {prefill:.1f} | {decode:.1f} |")
    print(f"| tuned / best of llama-bench | {ratio(found, 0):.3f} | {ratio(found, 1):.3f} |")
    print(f"\ntuned: {json.dumps(chosen)}")


if __name__ == "__main__":
    main()
