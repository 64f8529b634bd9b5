"""Which engine runs a model on this machine, and what to install where none can."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from localqwen.errors import EngineUnavailable, UsageError
from localqwen.machine import Machine
from localqwen.models import resolve as resolving
from localqwen.models.names import Reference
from localqwen.models.resolve import Choice, Chooser, ReadableBy, ResolvedModel

#: Names of the real engines -> the module that runs each. Nothing chooses the scripted one.
ENGINES = {"llama.cpp": "localqwen.engines.llama_cpp.engine", "mlx": "localqwen.engines.mlx.engine"}
PACKAGES = {"llama.cpp": "llama_cpp", "mlx": "mlx_lm"}
#: What users call an engine -> its name; `gguf` names the files that llama.cpp reads.
ALIASES = {"gguf": "llama.cpp", "llama_cpp": "llama.cpp", "llamacpp": "llama.cpp"}


def installed() -> dict[str, bool]:
    """Return whether the package of each engine can be imported, by the engine's name; import nothing."""
    return {name: importlib.util.find_spec(package) is not None for name, package in PACKAGES.items()}


def named(engine: str) -> str:
    """Return the engine that a user's word means, in any case. Raise UsageError."""
    name = ALIASES.get(engine.lower(), engine.lower())
    if name not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}", "engines: mlx, gguf (llama.cpp)")
    return name


def choose(
    machine: Machine, available: Mapping[str, bool], wanted: str | None = None, files: ReadableBy | None = None
) -> Choice:
    """The engine for this machine and these files: what the user asked for, else the best that is installed.

    `files` says that one engine alone can open the model, or that only its form is on this disk. How much memory there
    is changes nothing: both engines need about the same for the same model. Raises UsageError for an engine that does
    not exist or cannot open the files, EngineUnavailable naming what to install.
    """
    wanted = named(wanted) if wanted else None
    if files is not None and files.alone:
        return _that_reads(machine, available, wanted, files)
    if wanted is not None:
        return Choice(_installed(machine, available, wanted, f"the engine {wanted} is not installed"), "asked for")
    if files is not None and available.get(files.engine):
        return Choice(files.engine, files.why)
    return _best(machine, available)


def _that_reads(machine: Machine, available: Mapping[str, bool], wanted: str | None, files: ReadableBy) -> Choice:
    if wanted not in (None, files.engine):
        raise UsageError(f"{files.why}: {wanted} cannot open it", f"use --engine {files.engine}, or leave it out")
    missing = f"{files.why}, and the engine {files.engine} is not installed"
    return Choice(_installed(machine, available, files.engine, missing), files.why)


def _installed(machine: Machine, available: Mapping[str, bool], engine: str, missing: str) -> str:
    if not available.get(engine):
        raise EngineUnavailable(missing, how_to_install(engine, machine))
    return engine


def _best(machine: Machine, available: Mapping[str, bool]) -> Choice:
    mlx, llama, place = available.get("mlx"), available.get("llama.cpp"), f"{machine.system} {machine.architecture}"
    if apple_silicon(machine):
        if mlx:
            return Choice("mlx", f"computes on the GPU of {machine.chip} in the memory that it shares with the CPU")
        if llama:
            return Choice("llama.cpp", f"MLX is better on {machine.chip} and not installed: pip install mlx-lm")
    elif llama:
        rosetta = "; an arm64 Python would run MLX on this chip" if _under_rosetta(machine) else ""
        return Choice("llama.cpp", f"runs GGUF files on {place}{rosetta}")
    elif mlx:
        return Choice("mlx", f"the only engine here, and slow on {place}: pip install {_PIP['llama.cpp']} is faster")
    best = "mlx" if apple_silicon(machine) else "llama.cpp"
    raise EngineUnavailable("no engine is installed", how_to_install(best, machine))


def apple_silicon(machine: Machine) -> bool:
    """Return whether this is Apple Silicon and the Python is built for it: under Rosetta it says x86_64."""
    return (machine.system, machine.architecture) == ("Darwin", "arm64")


def _under_rosetta(machine: Machine) -> bool:
    return machine.system == "Darwin" and ("Apple" in machine.chip)  # "VirtualApple" to a translated process


def how_to_install(engine: str, machine: Machine) -> str:
    """Return the hint of an error where the engine is missing."""
    if engine == "mlx" and machine.system == "Darwin" and not apple_silicon(machine):
        return "MLX needs Apple Silicon and an arm64 Python: use the GGUF, --engine gguf"
    if engine == "mlx" and machine.system != "Darwin":
        return "pip install 'localqwen[mlx]' gets its CPU build, which is slow: better use the GGUF, --engine gguf"
    return f"pip install {_PIP[engine]}"


_PIP = {"llama.cpp": "llama-cpp-python", "mlx": "mlx-lm"}


def best_installed() -> str | None:
    """Return the engine for this machine whatever the model; None where none is installed."""
    from localqwen.machine import this_machine

    try:
        return choose(this_machine(), installed()).engine
    except EngineUnavailable:
        return None


def of_this_machine() -> Chooser:
    """Return the rule by which a name is resolved here: `choose`, for this machine and what is installed."""
    from localqwen.machine import this_machine

    return functools.partial(choose, this_machine(), installed())


def resolve(model: str | Path | Reference, engine: str | None = None, *, given: str = "") -> ResolvedModel:
    """Understand a name, a path or a parsed name (`given` is its text then) for the engines of this machine.

    Raise what `models.resolve` and `choose` raise.
    """
    if isinstance(model, str | Path):
        return resolving.resolve(str(model), of_this_machine(), engine)
    return resolving.of_reference(model, of_this_machine(), engine, given=given)
