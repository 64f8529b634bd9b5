"""Compute in a child process, so that a crash of an engine's library is an answer and not the end of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

TIMEOUT = 120  # seconds; a probe takes about one


def run_module(module: str, *arguments: str) -> tuple[int, str]:
    """Run a module of this package with this Python. Return its exit code (negative: the signal that ended it; 1 after
    TIMEOUT seconds) and the last line that it wrote to stderr."""
    command = [sys.executable, "-m", module, *arguments]
    # The parent may have found this package through a path of its own; the child must find the same one.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {TIMEOUT} s"
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


def reason(code: int, words: str) -> str:
    """Return what ended a child, for a message: the name of a signal, or the exit code and its last words."""
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}" + (f" ({words})" if words else "")
