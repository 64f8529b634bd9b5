"""Whether this build of llama.cpp runs on this CPU, and with which setting. Tried in a child process: it may crash.

A llama.cpp built with the compiler's native flags dies of an illegal instruction where the CPU announces AMX and does
not have it (virtual machines do that). Weights in ordinary buffers (`use_extra_bufts` false) avoid that path. The child
loads the built-in model and computes a few tokens with each setting until one works; the result is kept per build and
CPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from localqwen.engines import child_process
from localqwen.errors import EngineUnavailable, OutputError, StorageError
from localqwen.machine import cpu_flags, this_machine
from localqwen.models import converted, store

REBUILD = 'CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python'

#: Runs the child on a model with a setting. Returns its exit code (negative: the signal that ended it) and last words.
Child = Callable[[Path, bool], tuple[int, str]]


@dataclass(frozen=True)
class ProbeResult:
    """`ok` if this build runs here, with weights repacked into extra buffers only if `use_extra_bufts`. `cached` says
    that it was found out earlier."""

    ok: bool
    use_extra_bufts: bool
    detail: str
    cached: bool = False


def probe() -> ProbeResult:
    """Return what is known of this build and CPU, else probe now. Raise EngineUnavailable where nothing runs."""
    file = store.cache_dir() / "probe.json"
    key = fingerprint()
    result = _known(file, key)
    if result is None:
        result = _on_demo()
        if result.ok:
            _keep(file, key, result)
    if not result.ok:
        raise EngineUnavailable(f"this build of llama.cpp does not run on this CPU: {result.detail}", REBUILD)
    return result


def _on_demo() -> ProbeResult:
    """Probe with the built-in model; where the cache cannot be written, with a copy that lasts as long as the probe."""
    demo = converted.demo_conversion()
    try:
        return try_settings(demo.file(), _run_child)
    except (StorageError, OutputError):
        with tempfile.TemporaryDirectory(prefix="localqwen-") as scratch:
            target = Path(scratch) / "demo.gguf"
            return try_settings(converted.convert(demo.folder, target, quant=demo.quant, name=demo.name), _run_child)


def try_settings(model: Path, child: Child) -> ProbeResult:
    """Return the result of the fast setting if the child computes with it, else of the safe one."""
    code, words = child(model, True)
    if code == 0:
        return ProbeResult(True, True, "runs")
    first = child_process.reason(code, words)
    code, words = child(model, False)
    if code == 0:
        return ProbeResult(True, False, f"runs without weight repacking; with it the probe ended by {first}")
    return ProbeResult(
        False, False, f"the probe ended by {first}; without weight repacking by {child_process.reason(code, words)}"
    )


def _run_child(model: Path, use_extra_bufts: bool) -> tuple[int, str]:
    setting = str(int(use_extra_bufts))
    return child_process.run_module("localqwen.engines.llama_cpp.probe_child", str(model), setting)


def fingerprint() -> str:
    """Return 16 hexadecimal digits that change with the build of llama.cpp and with the CPU."""
    build = ["", 0, 0]
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.origin is not None:
        libraries = sorted((Path(spec.origin).parent / "lib").glob("*ggml-cpu*"))
        status = libraries[0].stat() if libraries else Path(spec.origin).stat()
        build = [importlib.metadata.version("llama-cpp-python"), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps([*build, this_machine().chip, cpu_flags()]).encode()).hexdigest()[:16]


def _known(file: Path, key: str) -> ProbeResult | None:
    try:
        return replace(ProbeResult(**json.loads(file.read_text())[key]), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing kept, or not readable: probe again


def _keep(file: Path, key: str, result: ProbeResult) -> None:
    """Keep the result of this build alone. Written beside and renamed: another process may be reading."""
    beside = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError, StorageError):  # without a cache it is probed again next time
        store.make_folder(file.parent)
        beside.write_text(json.dumps({key: asdict(result)}, indent=1))
        beside.replace(file)
