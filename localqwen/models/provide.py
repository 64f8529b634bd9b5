"""A name or path becomes a file that an engine can open: as it is, or converted into the cache on first use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from localqwen.errors import EngineUnavailable, ModelNotFound
from localqwen.models import registry, store

if TYPE_CHECKING:
    from convert import Progress

#: What a checkpoint folder becomes when it is run directly: close to lossless, half the size of 16 bit.
DEFAULT_QUANT = "q8_0"


def provide(name_or_path: str, *, progress: Callable[[Progress], None] | None = None) -> Path:
    """Raises ModelNotFound for an unknown name or an empty path, ConversionError where a folder cannot be converted."""
    if registry.lookup(name_or_path) is not None:
        return converted(demo_checkpoint(), name="demo", progress=progress)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return converted(path.resolve(), name=path.resolve().name, progress=progress)
    if path.is_file():
        return path
    if _looks_like_path(name_or_path):
        raise ModelNotFound(f"there is no file or folder {name_or_path}", "check the path")
    raise registry.unknown(name_or_path)


def _looks_like_path(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors")) or "/" in name or "\\" in name or name.startswith(("~", "."))


def demo_checkpoint() -> Path:
    """The built-in model in the official layout."""
    return Path(str(resources.files("localqwen").joinpath("demo")))


def converted(
    folder: Path, *, name: str, quant: str = DEFAULT_QUANT, progress: Callable[[Progress], None] | None = None
) -> Path:
    """The GGUF of a checkpoint folder, made when there is none of its present content."""
    target = store.converted_dir() / f"{name}-{_content_key(folder)}-{quant.upper()}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        converter().convert(folder, target, quant=quant, name=name, progress=progress, force=True)
    return target


def _content_key(folder: Path) -> str:
    """Changes when a file of the checkpoint does: sizes and times, not the bytes, so that it costs nothing."""
    from localqwen import __version__

    state = [__version__]
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja"):
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
