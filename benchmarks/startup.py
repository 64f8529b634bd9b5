"""Measure how long a user waits for short commands: complete processes, median of several runs.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 9
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "localqwen --version": [sys.executable, "-m", "localqwen", "--version"],
    "localqwen --help": [sys.executable, "-m", "localqwen", "--help"],
    'localqwen run demo "hi"': [sys.executable, "-m", "localqwen", "run", "demo", "hi"],
}


def seconds(command: list[str]) -> float:
    """Return the seconds of one run of the command."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    print("| command | median s | slowest s |\n|---|---|---|")
    for name, command in COMMANDS.items():
        seconds(command)  # a warm-up; the first `run demo` also converts and probes
        times = [seconds(command) for _ in range(RUNS)]
        print(f"| `{name}` | {statistics.median(times):.3f} | {max(times):.3f} |")


if __name__ == "__main__":
    main()
