"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from localqwen.errors import StorageError

_ELSEWHERE = "choose a folder that you may write to: LOCALQWEN_HOME=…"


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
    found = (path for path in converted_repository(repo).glob(f"*-{quant.upper()}.gguf") if os.path.isfile(path))
    return max(found, key=os.path.getmtime, default=None)


def conversations_dir() -> Path:
    return home() / "conversations"


def config_file() -> Path:
    moved = _moved()
    return (moved if moved else _platform("user_config_path")) / "config.toml"


def make_folder(folder: Path) -> Path:
    """Return a folder of ours, made with those above it if there is none. Raise StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot make the folder {folder}: {exc.strerror}", _ELSEWHERE) from exc
    return folder


def _moved() -> Path | None:
    """Return LOCALQWEN_HOME. Raise StorageError if no folder can have that name."""
    value = os.environ.get("LOCALQWEN_HOME")
    if not value:
        return None
    try:
        home = Path(value).expanduser().resolve()
        home.exists()
    except (OSError, RuntimeError) as exc:  # too long, closed to this user, a link to itself, no such user
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise StorageError(f"the folder LOCALQWEN_HOME={value} cannot be used: {why}", _ELSEWHERE) from exc
    return home


def _platform(function: str) -> Path:
    import platformdirs

    path: Path = getattr(platformdirs, function)("localqwen", appauthor=False)
    return path
