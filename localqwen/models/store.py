"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the folder of models and conversations: LOCALQWEN_HOME, else the platform's data folder."""
    moved = _moved()
    return moved if moved else _platform("user_data_path")


def cache_dir() -> Path:
    """Return the folder of what can be made again: converted files, probe results."""
    moved = _moved()
    return moved / "cache" if moved else _platform("user_cache_path")


def converted_dir() -> Path:
    return cache_dir() / "converted"


def converted_repository(repo: str) -> Path:
    """Return the folder of the files that were converted from an official repository."""
    return converted_dir() / repo.replace("/", "--")


def converted_file(repo: str, commit: str, quant: str) -> Path:
    """Return where the conversion of a repository's commit lies, whether it exists or not."""
    return converted_repository(repo) / f"{repo.rpartition('/')[2]}-{commit[:12]}-{quant.upper()}.gguf"


def manifest(file: Path) -> Path:
    """Return where a conversion notes what the file was made of."""
    return file.with_name(f"{file.name}.json")


def newest_converted(repo: str, quant: str) -> Path | None:
    """Return the newest file converted from that repository in that quantization; `*` means any."""
    found = converted_repository(repo).glob(f"*-{quant.upper()}.gguf")
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
