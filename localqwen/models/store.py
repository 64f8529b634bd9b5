"""Where things lie on this machine, and which models are there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_QUANT = re.compile(r"[-.](i?q\d\w*|bf16|f16|f32)$", re.IGNORECASE)
_KEY = re.compile(r"-[0-9a-f]{12}(?=[-.])")


@dataclass(frozen=True)
class LocalFile:
    """A model on disk. `quant` is upper case, "" where the name does not say; `modified` is seconds since 1970."""

    name: str
    path: Path
    bytes: int
    quant: str
    modified: float


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


def on_disk() -> list[LocalFile]:
    """The models in the store, largest first. The converted demo model is not listed: it always exists."""
    found = [
        _describe(path) for folder in (home() / "models", converted_dir()) for path in sorted(folder.glob("*.gguf"))
    ]
    return sorted((file for file in found if file.name != "demo"), key=lambda file: -file.bytes)


def _describe(path: Path) -> LocalFile:
    stem = _KEY.sub("", path.stem + ".")[:-1]
    quant = _QUANT.search(stem)
    status = path.stat()
    name = stem[: quant.start()] if quant else stem
    return LocalFile(name, path, status.st_size, quant.group(1).upper() if quant else "", status.st_mtime)
