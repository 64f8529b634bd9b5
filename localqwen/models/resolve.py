"""Which engine can open a model: by the form of its files, or by what of it is on this disk.

A GGUF file is llama.cpp's, a folder quantised for MLX is MLX's, a plain checkpoint folder runs on either (llama.cpp
converts it first). The names of the engines are known here, the engines are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from localqwen.models import checkpoint_header, inventory, names, registry
from localqwen.models.names import LocalPath, Named, Reference, Repository

LLAMA_CPP, MLX = "llama.cpp", "mlx"


@dataclass(frozen=True)
class Form:
    """The engine that the files are for, and why; `alone` where no other engine can open them."""

    engine: str
    why: str
    alone: bool = True


def readable(name: str) -> Form | None:
    """None where either engine would do. Raises ModelNotFound for an unknown name."""
    reference = names.parse(name)
    match reference:
        case LocalPath(path):
            return _of_path(path)
        case Named(model, quant) if not is_bare(name):
            engine = MLX if reference.mlx else LLAMA_CPP
            return Form(engine, f"{quant} of {model.name} is made for {engine}")
        case Named():
            return _of_entry(reference)
        case Repository():
            return _of_repository(reference)


def is_bare(name: str) -> bool:
    """Whether a name says the model alone, without a quantisation."""
    return registry.find(name) is not None or name.lower() in registry.families()


def for_engine(reference: Reference, engine: str, *, bare: bool = True) -> Reference:
    """What a name without a quantisation (`bare`) means for that engine: MLX has quantisations of its own."""
    if engine != MLX:
        return reference
    match reference:
        case Named(model) if bare and model.mlx and not reference.mlx:
            return Named(model, next(iter(model.mlx)), reference.why)
        case Repository() if not reference.quant:
            return replace(reference, mlx=True)
    return reference


def _of_path(path: Path) -> Form | None:
    if path.is_file() or path.suffix == ".gguf":
        return Form(LLAMA_CPP, f"{path.name} is a GGUF file")
    if path.is_dir() and checkpoint_header.is_for_mlx(path):
        return Form(MLX, f"{path.resolve().name} is quantised for MLX")
    return None


def _of_entry(named: Named) -> Form | None:
    if not named.quant:  # the built-in model: a checkpoint folder
        return None
    mlx = for_engine(named, MLX)
    if mlx is named:
        return Form(LLAMA_CPP, f"{named.model.name} has no official files for MLX", alone=False)
    return _here(inventory.find(named) is not None, inventory.find(mlx) is not None, named.model.name)


def _of_repository(reference: Repository) -> Form | None:
    folder = inventory.whole_weights(reference.repo)
    if folder is not None and checkpoint_header.is_for_mlx(folder):
        return Form(MLX, f"{reference.repo} is quantised for MLX")
    if reference.quant:
        return Form(LLAMA_CPP, f"{reference.quant} is a form of GGUF files")
    return _here(inventory.find(reference) is not None, folder is not None, reference.repo)


def _here(gguf: bool, folder: bool, name: str) -> Form | None:
    if gguf == folder:
        return None
    engine, form = (LLAMA_CPP, "GGUF file") if gguf else (MLX, "MLX folder")
    return Form(engine, f"of {name} only the {form} is on this disk", alone=False)
