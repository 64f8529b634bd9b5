"""A name or path becomes a file that an engine can open: as it is, or converted into the cache on first use.

Never loads anything over the network: that is `pull`, and a person says so first.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from localqwen.errors import EngineUnavailable, ModelNotFound, NotPulled, UsageError
from localqwen.models import checkpoint_header, gguf_header, inventory, names, resolve, store
from localqwen.models.names import LocalPath, Named, Reference, Repository

if TYPE_CHECKING:
    from convert import Progress

#: What a checkpoint folder becomes when it is run directly: close to lossless, half the size of 16 bit.
DEFAULT_QUANT = "q8_0"


def provide(
    name_or_path: str, *, engine: str = resolve.LLAMA_CPP, progress: Callable[[Progress], None] | None = None
) -> Path:
    """What that engine opens: a GGUF file for llama.cpp, a checkpoint folder for MLX.

    Raises ModelNotFound for an unknown name or an empty path, NotPulled for a model whose files are not here,
    ConversionError where a folder cannot be converted.
    """
    if engine == resolve.MLX:
        return _folder(name_or_path)
    reference = names.parse(name_or_path)
    match reference:
        case LocalPath(path):
            return _at(path, name_or_path, progress)
        case Named(model) if model.weights is None and not model.gguf:
            return converted(demo_checkpoint(), name=model.name, progress=progress)
    found = inventory.find(reference)
    return found.path if found else _made_of_whole_weights(reference, progress)


def _folder(said: str) -> Path:
    """A checkpoint folder as it is: quantised for MLX where there is one, else the official weights."""
    reference = resolve.for_engine(names.parse(said), resolve.MLX)
    match reference:
        case LocalPath(path):
            if path.is_dir():
                return path
            raise _nothing_at(said)
        case Named(model) if model.weights is None and not model.gguf:
            return demo_checkpoint()
        case Named():
            found = inventory.find(reference)
            folder = found.path if found else _weights_of(reference)
        case Repository(repo=repo):
            folder = inventory.whole_weights(repo)
    if folder is None:
        raise not_pulled(reference)
    return folder


def _weights_of(named: Named) -> Path | None:
    return inventory.whole_weights(named.model.weights.repo) if named.model.weights else None


def _at(path: Path, said: str, progress: Callable[[Progress], None] | None) -> Path:
    if path.is_dir():
        return converted(path.resolve(), name=path.resolve().name, progress=progress)
    if path.is_file():
        return path
    raise _nothing_at(said)


def _nothing_at(said: str) -> ModelNotFound:
    repository = said.count("/") == 1 and not said.startswith((".", "~", "/"))
    hint = f"check the path; a repository of a hub is written hf:{said}" if repository else "check the path"
    return ModelNotFound(f"there is no file or folder {said}", hint)


def _made_of_whole_weights(reference: Reference, progress: Callable[[Progress], None] | None) -> Path:
    """A conversion that a pull began, or that the weights of another program allow. Raises NotPulled."""
    match reference:
        case Named(model, quant) if model.weights and quant in model.made:
            repo, quant = model.weights.repo, reference.quant
        case Repository():
            repo, quant = reference.repo, reference.quant or inventory.CHECKPOINT_QUANT
        case _:
            raise not_pulled(reference)
    folder = inventory.whole_weights(repo)
    if folder is None:
        raise not_pulled(reference)
    target = store.made_file(repo, folder.name, quant)
    return make(folder, target, quant=quant, name=repo.rpartition("/")[2], progress=progress)


@contextmanager
def adapted(adapter: str | Path | None, model: Path, *, engine: str) -> Iterator[Path | None]:
    """The LoRA adapter in that folder as a file that the engine reads beside `model`, which is what it opens.

    The file is there until the block ends: an engine reads all of it when it opens the model. None without an adapter.
    Raises UsageError for what is no folder, ConversionError for an adapter that is no plain LoRA or does not fit.
    """
    if adapter is None:
        yield None
        return
    folder = adapter_folder(str(adapter))
    with tempfile.TemporaryDirectory(prefix="localqwen-") as made:
        if engine == resolve.MLX:
            out = Path(made) / f"{folder.name}.safetensors"
            converter().adapter_for_mlx(folder, out, config=checkpoint_header.config_of(model))
        else:
            out = Path(made) / f"{folder.name}.gguf"
            header = gguf_header.read(model)
            converter().adapter_for_llama_cpp(folder, out, architecture=header.architecture, sizes=header.sizes)
        yield out


def adapter_folder(said: str) -> Path:
    """Raises UsageError for what is no folder of this machine."""
    if "://" in said or said.lower().startswith(("hf:", "ms:")):
        raise UsageError(f"the adapter {said} is not on this machine", f"download it, then {_ADAPTER_HINT}")
    folder = Path(said).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"there is no folder {said} with an adapter", _ADAPTER_HINT)
    return folder


_ADAPTER_HINT = "give the folder that PEFT's save_pretrained made: --adapter FOLDER"


def refuse_built_in(reference: Reference, what: str) -> None:
    """Raises UsageError for the model that comes with the package: nothing of it was pulled."""
    if isinstance(reference, Named) and reference.model.weights is None and not reference.model.gguf:
        name = reference.model.name
        raise UsageError(f"{name} is built in, there is nothing to {what}", f"localqwen run {name} hello")


def not_pulled(reference: Reference) -> NotPulled:
    others = [file for file in inventory.pulled() if isinstance(reference, Named) and file.name == reference.model.name]
    here = f"; {inventory.command_name(others[0])} is here" if others else ""
    engine = " --engine mlx" if isinstance(reference, Repository) and reference.mlx else ""
    return NotPulled(f"{reference.text} is not on this machine{here}", f"localqwen pull {reference.text}{engine}")


def is_here(name: str, engine: str | None = None) -> bool:
    """Whether `provide` would find it for that engine, or for either, without a download.

    Raises ModelNotFound for an unknown name.
    """
    if engine is None:
        return is_here(name, resolve.LLAMA_CPP) or is_here(name, resolve.MLX)
    if engine == resolve.MLX:
        try:
            return bool(_folder(name))
        except ModelNotFound:
            return False
    reference = names.parse(name)
    match reference:
        case LocalPath(path):
            return path.exists()
        case Named(model) if model.weights is None and not model.gguf:
            return True
        case Named(model, quant):
            weights = model.weights.repo if model.weights and quant in model.made else ""
        case Repository(repo=repo):
            weights = repo
    return inventory.find(reference) is not None or bool(weights and inventory.whole_weights(weights))


def make(
    folder: Path, target: Path, *, quant: str, name: str, progress: Callable[[Progress], None] | None = None
) -> Path:
    """The GGUF file `target` of a checkpoint folder; it appears when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    converter().convert(folder, target, quant=quant.lower(), name=name, progress=progress, force=True)
    return target


def demo_checkpoint() -> Path:
    """The built-in model in the official layout."""
    return Path(str(resources.files("localqwen").joinpath("demo")))


def converted(
    folder: Path, *, name: str, quant: str = DEFAULT_QUANT, progress: Callable[[Progress], None] | None = None
) -> Path:
    """The GGUF of a checkpoint folder, made when there is none of its present content."""
    target = store.converted_dir() / f"{name}-{_content_key(folder)}-{quant.upper()}.gguf"
    return target if target.exists() else make(folder, target, quant=quant, name=name, progress=progress)


def _content_key(folder: Path) -> str:
    """Changes when a file of the checkpoint does: sizes and times, not the bytes, so that it costs nothing."""
    from localqwen._version import __version__

    state = [__version__]
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja") and not file.name.endswith(".gguf.json"):
            status = file.stat()
            state.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:12]


def converter() -> ModuleType:
    """The `convert` package that ships with localqwen. Raises EngineUnavailable if another one stands before it."""
    import convert

    if getattr(convert, "OWNER", None) != "localqwen":
        raise EngineUnavailable(
            f"another package named 'convert' hides localqwen's own: {getattr(convert, '__file__', convert)}",
            "remove it, or leave its folder before running localqwen",
        )
    return convert
