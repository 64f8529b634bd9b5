"""Where things lie on this machine, and which models are there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from localqwen.formats.gguf_parts import quant_of

_KEY = re.compile(r"-[0-9a-f]{12}(?=[-.])")


@dataclass(frozen=True)
class LocalFile:
    """A model on disk. `path` is what an engine opens, `parts` are all of its files. `quant` is "" where the name does
    not say; `modified` and `used` are seconds since 1970, `used` as precise as the file system keeps it."""

    name: str
    path: Path
    bytes: int
    quant: str
    modified: float
    engine: str = "llama.cpp"
    parts: tuple[Path, ...] = ()
    used: float = 0.0


def home() -> Path:
    """Where models and conversations are kept: LOCALQWEN_HOME, else the platform's data folder."""
    moved = _moved()
    return moved if moved else _platform("user_data_path")


def cache_dir() -> Path:
    """What can be made again: converted files, probe results."""
    moved = _moved()
    return moved / "cache" if moved else _platform("user_cache_path")


def converted_dir() -> Path:
    return cache_dir() / "converted"


def made_dir(repo: str) -> Path:
    """Where the files lie that were converted from an official repository."""
    return converted_dir() / repo.replace("/", "--")


def made_file(repo: str, commit: str, quant: str) -> Path:
    return made_dir(repo) / f"{repo.rpartition('/')[2]}-{commit[:12]}-{quant.upper()}.gguf"


def manifest(file: Path) -> Path:
    """Where a conversion notes what the file was made of."""
    return file.with_name(f"{file.name}.json")


def made(repo: str, quant: str) -> Path | None:
    """The newest file converted from that repository in that quantisation."""
    found = made_dir(repo).glob(f"*-{quant.upper()}.gguf")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def conversations_dir() -> Path:
    return home() / "conversations"


def config_file() -> Path:
    moved = _moved()
    return (moved if moved else _platform("user_config_path")) / "config.toml"


def _moved() -> Path | None:
    value = os.environ.get("LOCALQWEN_HOME")
    return Path(value).expanduser().resolve() if value else None


def _platform(function: str) -> Path:
    import platformdirs

    path: Path = getattr(platformdirs, function)("localqwen", appauthor=False)
    return path


def own_files() -> list[LocalFile]:
    """The models in our own folders: what a user put into `models`, and what was converted from a folder of his. The
    converted demo model is not listed: it always exists."""
    found = [
        _describe(path) for folder in (home() / "models", converted_dir()) for path in sorted(folder.glob("*.gguf"))
    ]
    return [file for file in found if file.name != "demo"]


def _describe(path: Path) -> LocalFile:
    stem = _KEY.sub("", path.stem + ".")[:-1]
    quant = quant_of(Path(stem + path.suffix))
    name = stem[: -len(quant) - 1] if quant else stem
    return local_file(name, (path,), quant)


def local_file(name: str, parts: tuple[Path, ...], quant: str, engine: str = "llama.cpp") -> LocalFile:
    states = [part.stat() for part in parts]
    modified = max(state.st_mtime for state in states)
    used = max(modified, *(state.st_atime for state in states))
    return LocalFile(name, parts[0], sum(state.st_size for state in states), quant, modified, engine, parts, used)
