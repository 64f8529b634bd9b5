"""A model on this disk: its files, which entry they belong to, and what a user types to run them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localqwen.formats.gguf_parts import quant_of
from localqwen.models import store
from localqwen.models.registry import Model

_KEY = re.compile(r"-[0-9a-f]{12}(?=[-.])")


@dataclass(frozen=True)
class LocalFile:
    """The files of one model.

    `path` is the first GGUF file or the checkpoint folder, `parts` are all of the files. `quant` is "" where the name
    does not say it. `modified` and `used` are seconds since 1970, `used` as precise as the file system keeps it.
    `entry` is None for a model that models.toml does not know. `command` is the name that means this model and this
    quantization, "" where only its path does.
    """

    name: str
    path: Path
    bytes: int
    quant: str
    modified: float
    engine: str = "llama.cpp"
    parts: tuple[Path, ...] = ()
    used: float = 0.0
    entry: Model | None = None
    command: str = ""

    @property
    def typed(self) -> str:
        """What to type to run it: its name with the quantization where that is needed, else its path."""
        return self.command or str(self.path)

    @property
    def shown(self) -> str:
        """What to type where the model has such a name, else the name of the file."""
        return self.command or self.name


def local_file(
    name: str, parts: tuple[Path, ...], quant: str, *, entry: Model | None = None, command: str = ""
) -> LocalFile:
    """Describe a GGUF model by its parts, in order."""
    states = [part.stat() for part in parts]
    modified = max(state.st_mtime for state in states)
    used = max(modified, *(state.st_atime for state in states))
    size = sum(state.st_size for state in states)
    return LocalFile(name, parts[0], size, quant, modified, "llama.cpp", parts, used, entry, command)


def local_folder(folder: Path, name: str, engine: str, *, quant: str = "", entry: Model | None = None) -> LocalFile:
    """Describe a checkpoint folder by its weights."""
    parts = tuple(sorted(folder.glob("*.safetensors")))
    size, modified = sum(part.stat().st_size for part in parts), folder.stat().st_mtime
    return LocalFile(name, folder, size, quant, modified, engine, parts, modified, entry)


def own_files() -> list[LocalFile]:
    """Return the models in our own folders: what a user put into `models`, and what was converted from a folder of his.

    The converted demo model is not listed: it always exists.
    """
    folders = (store.home() / "models", store.converted_dir())
    found = [described(_describe, path) for folder in folders for path in _ggufs(folder)]
    return [file for file in found if file is not None and file.name != "demo"]


def _ggufs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.gguf") if os.path.isfile(path))


def described(describe: Callable[..., LocalFile | None], *arguments: object) -> LocalFile | None:
    """Return what `describe` gives; None if a file was removed meanwhile: one file never spoils a list."""
    try:
        return describe(*arguments)
    except OSError:
        return None


def _describe(path: Path) -> LocalFile:
    stem = _KEY.sub("", path.stem + ".")[:-1]
    quant = quant_of(Path(stem + path.suffix))
    name = stem[: -len(quant) - 1] if quant else stem
    return local_file(name, (path,), quant)
