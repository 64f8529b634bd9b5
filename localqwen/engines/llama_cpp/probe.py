"""Does this build of an engine run on this machine? Asked in a child process, so that a crash is an answer.

A llama.cpp built with the compiler's native flags dies of an illegal instruction where the CPU announces AMX and does
not have it (virtual machines do that). Weights in ordinary buffers (`use_extra_bufts` false) avoid that path. The child
loads the built-in model and computes a few tokens with each setting until one works; the answer is remembered per build
and CPU. MLX has no such settings: `doctor` alone asks whether it computes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from localqwen.errors import EngineUnavailable
from localqwen.machine import cpu_flags, this_machine
from localqwen.models import converted, store

TIMEOUT = 120  # seconds; a probe takes about one
REBUILD = 'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python'

#: Runs the child on a model with a setting; gives its exit code (negative: the signal that ended it), its last words.
Child = Callable[[Path, bool], tuple[int, str]]


@dataclass(frozen=True)
class ProbeResult:
    """`ok`: this build can run here, with weights repacked into extra buffers only if `use_extra_bufts`."""

    ok: bool
    use_extra_bufts: bool
    detail: str
    cached: bool = False


def probe() -> ProbeResult:
    """The remembered result for this build and CPU, else a new probe. Raises EngineUnavailable where nothing runs."""
    file = store.cache_dir() / "probe.json"
    key = fingerprint()
    result = _remembered(file, key)
    if result is None:
        result = ask(converted.demo_conversion().file(), _run_child)
        if result.ok:
            _remember(file, key, result)
    if not result.ok:
        raise EngineUnavailable(f"this build of llama.cpp does not run on this CPU: {result.detail}", REBUILD)
    return result


def ask(model: Path, child: Child) -> ProbeResult:
    """Try the fast setting, then the safe one."""
    code, words = child(model, True)
    if code == 0:
        return ProbeResult(True, True, "runs")
    first = _why(code, words)
    code, words = child(model, False)
    if code == 0:
        return ProbeResult(True, False, f"runs without weight repacking; with it the probe ended by {first}")
    return ProbeResult(False, False, f"the probe ended by {first}; without weight repacking by {_why(code, words)}")


def _why(code: int, words: str) -> str:
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}" + (f" ({words})" if words else "")


def check_mlx() -> None:
    """Raises EngineUnavailable where MLX cannot load the built-in model and compute a few tokens."""
    code, words = _child("localqwen.engines.mlx.probe", str(converted.demo_checkpoint()))
    if code:
        raise EngineUnavailable(
            f"MLX does not run on this machine: the probe ended by {_why(code, words)}",
            "pip install --force-reinstall mlx mlx-lm",
        )


def _run_child(model: Path, use_extra_bufts: bool) -> tuple[int, str]:
    return _child("localqwen.engines.llama_cpp.probe_child", str(model), str(int(use_extra_bufts)))


def _child(module: str, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", module, *arguments]
    # The parent may have found this package through a path of its own; the child must find the same one.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {TIMEOUT} s"
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


def fingerprint() -> str:
    """Changes with the build of llama.cpp and with the CPU."""
    build = ["", 0, 0]
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        libraries = sorted((Path(spec.origin).parent / "lib").glob("*ggml-cpu*"))
        status = libraries[0].stat() if libraries else Path(spec.origin).stat()
        build = [importlib.metadata.version("llama-cpp-python"), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps([*build, this_machine().chip, cpu_flags()]).encode()).hexdigest()[:16]


def _remembered(file: Path, key: str) -> ProbeResult | None:
    try:
        return replace(ProbeResult(**json.loads(file.read_text())[key]), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing remembered, or not readable: ask again


def _remember(file: Path, key: str, result: ProbeResult) -> None:
    """Only the present build's answer is kept. Written beside and renamed: another process may be reading."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps({key: asdict(result)}, indent=1))
    beside.replace(file)
