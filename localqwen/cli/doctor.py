"""`localqwen doctor`: what this machine has, what can run on it, and where our folders are."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from localqwen._version import __version__
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.failures import report
from localqwen.cli.format import aligned, readable_bytes
from localqwen.cli.options import json_option
from localqwen.errors import EngineUnavailable, LocalqwenError
from localqwen.machine import Machine, this_machine
from localqwen.models import store

#: Engine -> the package whose version is that of the engine.
DISTRIBUTIONS = {"llama.cpp": "llama-cpp-python", "mlx": "mlx-lm"}
PACKAGES = ("click", "jinja2", "prompt_toolkit", "psutil", "platformdirs", "rich")


@click.command("doctor", cls=ConfiguredCommand)
@json_option
def command(as_json: bool) -> int:
    """Check this machine: what it has, which engines are installed, which one is chosen, and whether it runs."""
    findings = examine(this_machine())
    sys.stdout.write((json.dumps(findings, ensure_ascii=False) if as_json else page(findings)) + "\n")
    if findings["ok"]:
        return 0
    sys.stdout.flush()
    report("no engine runs on this machine", findings["hint"])
    return 1


def examine(machine: Machine) -> dict[str, Any]:
    """Return everything that the page shows, as plain data."""
    from localqwen.engines import selection

    findings: dict[str, Any] = {
        "localqwen": __version__,
        "python": platform.python_version(),
        "machine": asdict(machine),
        "engines": {name: _engine(name, here) for name, here in selection.installed().items()},
        "packages": {name: _version(name) for name in PACKAGES},
        "folders": {name: _folder(path) for name, path in _folders().items()},
    }
    try:
        choice = selection.choose(machine, selection.installed())
    except EngineUnavailable as error:
        return {**findings, "ok": False, "chosen": None, "reason": error.message, "hint": error.hint}
    probe = findings["engines"][choice.engine]["probe"]
    return {**findings, "ok": probe["ok"], "chosen": choice.engine, "reason": choice.reason, "hint": probe["hint"]}


def _engine(name: str, installed: bool) -> dict[str, Any]:
    version = _version(DISTRIBUTIONS.get(name, name))
    return {"installed": installed, "version": version, "probe": _probe(name) if installed else None}


def _probe(name: str) -> dict[str, Any]:
    """Return whether the engine computes on this machine, and with which setting."""
    from localqwen.engines.llama_cpp import probe as llama_cpp
    from localqwen.engines.mlx import probe as mlx

    try:
        if name == "mlx":
            mlx.probe()
            return {"ok": True, "detail": "runs", "hint": ""}
        result = llama_cpp.probe()
    except LocalqwenError as error:
        return {"ok": False, "detail": error.message, "hint": error.hint}
    return {"ok": result.ok, "detail": result.detail, "hint": "", "use_extra_bufts": result.use_extra_bufts}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folders() -> dict[str, Path]:
    return {"home": store.home(), "cache": store.cache_dir(), "config": store.config_file().parent}


def _folder(path: Path) -> dict[str, Any]:
    """Return the free bytes of the disk on which the folder is, or will be, and whether this user may write there."""
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    return {"path": str(path), "free_bytes": shutil.disk_usage(existing).free, "writable": writable}


def _folder_line(folder: Mapping[str, Any]) -> str:
    state = f"{readable_bytes(folder['free_bytes'])} free" if folder["writable"] else "cannot be written"
    return f"{folder['path']} ({state})"


def page(findings: Mapping[str, Any]) -> str:
    """Return the page as text."""
    machine = findings["machine"]
    memory = f"{readable_bytes(machine['memory'])}, {readable_bytes(machine['available_memory'])} available"
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in findings["packages"].items())
    rows = [
        ("localqwen", f"{findings['localqwen']} on Python {findings['python']}"),
        ("machine", f"{machine['system']} {machine['architecture']}, {machine['chip']}, {machine['cores']} cores"),
        ("memory", memory),
        *((f"engine {name}", _engine_line(engine)) for name, engine in findings["engines"].items()),
        ("chosen", f"{findings['chosen'] or 'none'}: {findings['reason']}"),
        ("packages", packages),
        *((name, _folder_line(folder)) for name, folder in findings["folders"].items()),
    ]
    return aligned(rows)


def _engine_line(engine: Mapping[str, Any]) -> str:
    if not engine["installed"]:
        return "not installed"
    probe = engine["probe"]
    line = f"{engine['version'] or 'version unknown'}, probe: {'passed' if probe['ok'] else 'failed'}"
    if probe["ok"] and probe.get("use_extra_bufts", True):
        return line
    if probe["ok"]:
        line += ": the CPU announces instructions (AMX) that do not work, so weights are not repacked"
    return f"{line}; {probe['detail']}"
