"""A server as a process of its own, in a home of its own: starting, measuring, ending it. Only POSIX."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from attacks.client import Address

ROOT = Path(__file__).parents[2]
#: The module that a loaded model's process runs; the last argument is the model's name.
CHILD = "localqwen.model_process"
GOOD = "demo"
_LISTENS = re.compile(r"http://([0-9.]+):(\d+)/v1")
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Measured:
    """What a server holds at one moment; memory in bytes."""

    parent_memory: int
    children_memory: int
    children: int
    files: int
    threads: int


class Server:
    """`localqwen serve demo` with a home, which holds its log and temporary files too. `options` are flags."""

    def __init__(self, home: Path, options: Sequence[str] = ()) -> None:
        self.home = home
        self.models = home / "models"
        self.temporary = home / "tmp"
        self.log = home / "serve.log"
        self._options = options
        self.address = Address("127.0.0.1", 0)
        for folder in (self.models, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the process, again at the same port, and wait until it listens. Raise RuntimeError after two
        minutes."""
        command = [sys.executable, "-m", "localqwen", "serve", GOOD, "--port", str(self.address.port), *self._options]
        began = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if not eventually(lambda: self._listens(began) or not self.alive, 120) or not self.alive:
            raise RuntimeError(f"the server did not start:\n{self.log_tail()}")

    def _environment(self) -> dict[str, str]:
        """Return the environment: nothing reaches a hub, and every temporary file is in a folder of its own."""
        ours = {
            "LOCALQWEN_HOME": str(self.home), "TMPDIR": str(self.temporary), "HF_HOME": str(self.home / "hub"),
            "HF_ENDPOINT": "http://127.0.0.1:9", "MODELSCOPE_CACHE": str(self.home / "modelscope"),
            "MODELSCOPE_DOMAIN": "127.0.0.1:9", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "0",
        }  # fmt: skip
        return {key: value for key, value in os.environ.items() if not key.startswith("LOCALQWEN_")} | ours

    def _listens(self, begin: int) -> bool:
        found = _LISTENS.search(self.log.read_bytes()[begin:].decode(errors="replace"))
        if found:
            self.address = Address(found[1], int(found[2]))
        return found is not None

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process.poll() is None

    def children(self) -> list[psutil.Process]:
        """Return all processes below the server that run."""
        try:
            return [each for each in psutil.Process(self.process.pid).children(recursive=True) if runs(each)]
        except psutil.NoSuchProcess:
            return []

    def child_of(self, model: str) -> psutil.Process | None:
        """Return the process of a loaded model, or None."""
        return next((each for each in self.children() if model_of(each) == model), None)

    def measure(self) -> Measured:
        """Return what the server holds now."""
        parent = psutil.Process(self.process.pid)
        memory = [memory_of(each) for each in self.children()]
        return Measured(memory_of(parent), sum(memory), len(memory), parent.num_fds(), parent.num_threads())

    def left_over(self) -> list[str]:
        """Return the processes, temporary files and locks of an ended server that still exist."""
        processes = [f"process {each.pid} of {model_of(each)}" for each in model_processes(self.home)]
        locks = [path for pattern in ("*.lock", "*.part", "*.tmp", "*.incomplete") for path in self.home.rglob(pattern)]
        return processes + [str(path) for path in (*self.temporary.iterdir(), *locks)]

    def end(self, patience: float = 60.0) -> tuple[int | None, float]:
        """Send SIGTERM and return the exit code and the seconds until the end; None if SIGKILL was necessary."""
        began = time.perf_counter()
        self.process.terminate()
        try:
            return self.process.wait(patience), time.perf_counter() - began
        except subprocess.TimeoutExpired:
            self.kill()
            return None, time.perf_counter() - began

    def kill(self) -> None:
        """Send SIGKILL to the server, and to the processes of models that stay."""
        self.process.kill()
        self.process.wait()
        for each in model_processes(self.home):
            each.kill()

    def tracebacks(self) -> int:
        """Return how many tracebacks the log holds."""
        return self.log.read_text(errors="replace").count(_TRACEBACK)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        return "\n".join(line[:300] for line in self.log.read_text(errors="replace").splitlines()[-lines:])


def runs(process: psutil.Process) -> bool:
    """Return whether a process exists and is not only waited for."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def model_of(process: psutil.Process) -> str | None:
    """Return the model whose process this is, or None."""
    try:
        command = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return command[command.index(CHILD) + 1] if CHILD in command[:-1] else None


def model_processes(home: Path) -> list[psutil.Process]:
    """Return the processes of models that belong to a server of this home, wherever they hang in the tree."""
    return [each for each in psutil.process_iter() if runs(each) and model_of(each) and _home_of(each) == str(home)]


def _home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("LOCALQWEN_HOME")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def memory_of(process: psutil.Process) -> int:
    """Return the resident memory of a process in bytes; 0 for one that has ended."""
    try:
        size: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return size


def signal_process(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal, and return whether the process was still there."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def eventually(condition: Callable[[], object], seconds: float, pause: float = 0.01) -> bool:
    """Return whether the condition becomes true within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True
