"""Measure decode speed while another program takes cores: fixed thread counts against the engine that releases threads.

    python benchmarks/threads.py build/qwen3-0.6b-random-q4_k_m.gguf

Each figure comes from one process; settings take turns within a round, with and without a program that keeps a core
busy. Counting begins one second after the first token, when the engine has seen the load. "llama.cpp's default" is a
fixed count without our OpenMP settings: threads that spin until they are needed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from localqwen import machine
from localqwen.engines.engine import Sampling

SECONDS = 6
BUSY = "while True: pass"


def child(path: Path, threads: int) -> None:
    """Print tokens per second with `threads` threads; 0 means as many as are free."""
    from localqwen.engines.llama_cpp.engine import OwnModelEngine
    from localqwen.engines.llama_cpp.settings import Settings

    count = threads or machine.usable_cores()
    engine = OwnModelEngine(path, Settings(count, adapt_threads=not threads), context_length=2048)
    run = engine.start(list(range(1000, 1016)), Sampling(temperature=0), max_tokens=2000)
    while not run.generated:
        engine.step()
    began = time.monotonic()
    while time.monotonic() - began < 1:
        engine.step()
    counted, began = run.generated, time.monotonic()
    while time.monotonic() - began < SECONDS and not run.finished:
        engine.step()
    print((run.generated - counted) / (time.monotonic() - began))


def measure(path: Path, threads: int, environment: dict[str, str], busy: int) -> float:
    """Return the tokens per second that a child process prints."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, str(path), "--child", str(threads)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
    return float(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.file, arguments.child)
        return
    cores = machine.usable_cores()
    spinning = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "infinite"}
    cases = {f"{cores} threads, llama.cpp's default": (cores, spinning)}
    cases |= {f"{count} thread{'s' * (count > 1)}": (count, {}) for count in range(cores, 0, -1)}
    cases |= {"ours, as many as are free": (0, {})}
    print("| setting | idle t/s | one core taken t/s |\n| --- | ---: | ---: |")
    found: dict[str, list[list[float]]] = {name: [[], []] for name in cases}
    for _ in range(arguments.rounds):
        for name, (threads, environment) in cases.items():
            for busy in (0, 1):
                found[name][busy].append(measure(arguments.file, threads, environment, busy))
    for name, (idle, taken) in found.items():
        print(f"| {name} | {statistics.median(idle):.1f} | {statistics.median(taken):.1f} |")


if __name__ == "__main__":
    main()
