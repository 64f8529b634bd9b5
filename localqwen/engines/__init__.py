"""Tokens in, text out: `open` gives the engine of a model; `engines/engine.py` says what it does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from localqwen.engines.engine import Engine as Engine
from localqwen.engines.engine import Run as Run
from localqwen.engines.engine import Sampling as Sampling
from localqwen.engines.engine import TokenOutput as TokenOutput
from localqwen.engines.selection import ENGINES, resolve
from localqwen.models.resolve import ResolvedModel


def open(  # noqa: A001  (the public name: localqwen.engines.open)
    name_or_path: str | Path,
    *,
    engine: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    max_runs: int = 1,
    force: bool = False,
    kv_quant: int | None = None,
    adapter: str | Path | None = None,
) -> Engine:
    """Open a model by name or path on the engine that fits this machine.

    `context_length` is tokens per run (default: what the model and this machine's memory allow), `threads` defaults to
    the physical cores this process may use, `force` loads what does not fit the memory, `kv_quant` keeps keys and
    values in 8 or 4 bits instead of 16. A context beyond what the file says is stretched by YaRN, as far as the model
    was made for it (formats/yarn.py). `adapter` is a folder with a LoRA adapter of PEFT's layout, applied to the model
    as it stands. Raise ModelNotFound, UsageError, EngineUnavailable, EngineError, ConversionError.
    """
    return open_resolved(
        resolve(name_or_path, engine),
        context_length=context_length,
        threads=threads,
        max_runs=max_runs,
        force=force,
        kv_quant=kv_quant,
        adapter=adapter,
    )


def open_resolved(model: ResolvedModel, *, adapter: str | Path | None = None, **options: Any) -> Engine:
    """Open a resolved model; `options` are those of `open` but the engine, which is chosen."""
    from localqwen.models import converted

    path = model.path()
    module = importlib.import_module(ENGINES[model.engine])
    with converted.adapted(adapter, path, for_mlx=model.engine == "mlx") as lora:
        opened: Engine = module.open(path, adapter=lora, **options)
    return opened
