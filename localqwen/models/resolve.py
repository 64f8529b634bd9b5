"""A name, path or repository, understood once: which model, for which engine, and what of it is on this disk.

A GGUF file is llama.cpp's, a folder quantized for MLX is MLX's, a plain checkpoint folder runs on either (llama.cpp
needs it converted first). Names of engines are known here, engines are not: who resolves a name says which are
installed and which is preferred, by a function. Nothing is loaded over the network: that is `pull`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from localqwen.errors import ModelNotFound
from localqwen.formats import qwen3_config
from localqwen.models import converted, inventory, local_files, names, registry
from localqwen.models.converted import CHECKPOINT_QUANT, Conversion
from localqwen.models.local_files import LocalFile
from localqwen.models.names import LocalPath, Named, Reference, Repository
from localqwen.models.registry import Model, Thinking

LLAMA_CPP, MLX = "llama.cpp", "mlx"


@dataclass(frozen=True)
class ReadableBy:
    """The engine that a model's files are for, and why; `alone` where no other engine can open them."""

    engine: str
    why: str
    alone: bool = True


@dataclass(frozen=True)
class Choice:
    """An engine, and the reason in words that a user can check."""

    engine: str
    reason: str


#: Takes the engine that the user asked for and what the files say, None where that is nothing; raises LocalqwenError.
Chooser = Callable[[str | None, ReadableBy | None], Choice]


@dataclass(frozen=True)
class ResolvedModel:
    """A model and the engine that will run it. `given` is the text that named it, `why` the reason for the engine.

    `files` are what lies on this disk for that engine, None where nothing does. Where they are a checkpoint that
    llama.cpp cannot read, `conversion` makes the file that it can.
    """

    given: str
    reference: Reference
    engine: str
    why: str = ""
    files: LocalFile | None = None
    conversion: Conversion | None = None

    @property
    def entry(self) -> Model | None:
        """Its entry in models.toml; None for a path and a repository."""
        return self.reference.model if isinstance(self.reference, Named) else None

    @property
    def is_built_in(self) -> bool:
        return self.entry is not None and self.entry.is_built_in

    @property
    def display(self) -> str:
        """What a user sees of the name: short, without folders."""
        return self.reference.display

    @property
    def name(self) -> str:
        """A name that means the same from another folder tomorrow."""
        if isinstance(self.reference, LocalPath):
            return str(self.reference.path.absolute())
        return self.reference.text

    @property
    def thinking(self) -> Thinking | None:
        """None where only the model's template tells."""
        return self.entry.thinking if self.entry else None

    @property
    def sampling(self) -> Mapping[str, Mapping[str, float]]:
        """What the entry says of `thinking` and `not_thinking`."""
        return self.entry.sampling if self.entry else {}

    def path(self, progress: converted.Report | None = None) -> Path:
        """Return what the engine opens, converted first where that is needed.

        Raise ModelNotFound for an empty path, NotPulled for a model whose files are not here, ConversionError.
        """
        if self.files is None:
            raise self.missing()
        return self.conversion.file(progress) if self.conversion else self.files.path

    def missing(self) -> ModelNotFound:
        """Return the error of a model without files."""
        if not isinstance(self.reference, LocalPath):
            return inventory.not_pulled(for_engine(self.reference, self.engine))
        said = self.given
        repository = said.count("/") == 1 and not said.startswith((".", "~", "/"))
        hint = f"check the path; a repository of a hub is written hf:{said}" if repository else "check the path"
        return ModelNotFound(f"there is no file or folder {registry.shown(said)}", hint)


def resolve(name: str, choose: Chooser, engine: str | None = None) -> ResolvedModel:
    """Understand a name. Raise ModelNotFound for an unknown one, UsageError for a malformed one, what `choose` does."""
    return of_reference(names.parse(name), choose, engine, given=name)


def of_reference(reference: Reference, choose: Chooser, engine: str | None = None, *, given: str = "") -> ResolvedModel:
    """Choose the engine of a name that was parsed, and look for its files."""
    choice = choose(engine, readable_by(reference))
    return located(ResolvedModel(given or reference.text, reference, choice.engine, choice.reason))


def located(model: ResolvedModel) -> ResolvedModel:
    """Look at the disk again: after a pull, or where time has passed."""
    files, conversion = _files(model.reference, model.engine)
    return replace(model, files=files, conversion=conversion)


def readable_by(reference: Reference) -> ReadableBy | None:
    """Return which engine the files are for, or that only its files are on this disk; None where either would do."""
    match reference:
        case LocalPath(path):
            return _format_of(path)
        case Named(model, quant) if not reference.bare:
            engine = MLX if reference.mlx else LLAMA_CPP
            return ReadableBy(engine, f"{quant} of {model.name} is made for {engine}")
        case Named():
            return _of_entry(reference)
        case Repository():
            return _of_repository(reference)


def for_engine(reference: Reference, engine: str) -> Reference:
    """Return what a name without a quantization means for that engine: MLX has quantizations of its own."""
    if engine != MLX:
        return reference
    match reference:
        case Named(model) if reference.bare and model.mlx and not reference.mlx:
            return replace(reference, quant=next(iter(model.mlx)))
        case Repository() if not reference.quant:
            return replace(reference, mlx=True)
    return reference


def _format_of(path: Path) -> ReadableBy | None:
    if os.path.isfile(path) or path.suffix == ".gguf":
        return ReadableBy(LLAMA_CPP, f"{path.name} is a GGUF file")
    if os.path.isdir(path) and qwen3_config.is_for_mlx(path):
        return ReadableBy(MLX, f"{path.resolve().name} is quantized for MLX")
    return None


def _of_entry(named: Named) -> ReadableBy | None:
    if named.model.is_built_in:  # a checkpoint folder
        return None
    mlx = for_engine(named, MLX)
    if mlx is named:
        return ReadableBy(LLAMA_CPP, f"{named.model.name} has no official files for MLX", alone=False)
    return _only_here(inventory.find(named) is not None, inventory.find(mlx) is not None, named.model.name)


def _of_repository(reference: Repository) -> ReadableBy | None:
    folder = inventory.complete_checkpoint(reference.repo)
    if folder is not None and qwen3_config.is_for_mlx(folder):
        return ReadableBy(MLX, f"{reference.repo} is quantized for MLX")
    if reference.quant:
        return ReadableBy(LLAMA_CPP, f"{reference.quant} is a quantization of GGUF files")
    return _only_here(inventory.find(reference) is not None, folder is not None, reference.repo)


def _only_here(gguf: bool, folder: bool, name: str) -> ReadableBy | None:
    if gguf == folder:
        return None
    engine, form = (LLAMA_CPP, "GGUF file") if gguf else (MLX, "MLX folder")
    return ReadableBy(engine, f"of {name} only the {form} is on this disk", alone=False)


_Files = tuple[LocalFile | None, Conversion | None]


def _files(reference: Reference, engine: str) -> _Files:
    match reference:
        case LocalPath(path):
            return _at(path, engine)
        case Named(model) if model.is_built_in:
            return _checkpoint(converted.demo_conversion(), engine, model)
        case Named(model) if engine == MLX:
            found = for_engine(reference, MLX)
            weights = model.weights.repo if model.weights else ""
            here = inventory.find(found) if isinstance(found, Named) and found.mlx else None
            return (here, None) if here else _of_complete_checkpoint(weights, model.default, engine, model)
        case Named(model, quant):
            repo = model.weights.repo if model.weights and quant in model.made else ""
            here = inventory.find(reference)
            return (here, None) if here else _of_complete_checkpoint(repo, quant, engine, model)
        case Repository(repo=repo):
            here = inventory.find(reference) if engine != MLX else None
            quant = reference.quant or CHECKPOINT_QUANT
            return (here, None) if here else _of_complete_checkpoint(repo, quant, engine, None)


def _at(path: Path, engine: str) -> _Files:
    if os.path.isdir(path):
        folder = path if engine == MLX else path.resolve()
        return _checkpoint(Conversion(folder, path.resolve().name), engine, None)
    return (inventory.find(LocalPath(path)) if os.path.isfile(path) else None), None


def _of_complete_checkpoint(repo: str, quant: str, engine: str, entry: Model | None) -> _Files:
    """Official weights that a pull began with, or that the weights of another program allow."""
    folder = inventory.complete_checkpoint(repo) if repo else None
    if folder is None:
        return None, None
    return _checkpoint(Conversion(folder, repo.rpartition("/")[2], quant, repo), engine, entry)


def _checkpoint(conversion: Conversion, engine: str, entry: Model | None) -> _Files:
    """A checkpoint folder: MLX reads it as it is."""
    files = local_files.local_folder(conversion.folder, conversion.name, engine, entry=entry)
    return files, None if engine == MLX else conversion
