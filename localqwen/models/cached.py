"""The cache of huggingface_hub, as it lies on disk. Knows no network.

    models--OWNER--NAME/blobs/DIGEST            the bytes of a file, named by what the hub declared
    models--OWNER--NAME/blobs/DIGEST.incomplete the beginning of one
    models--OWNER--NAME/snapshots/COMMIT/PATH   a link to it under its own name
    models--OWNER--NAME/refs/REVISION           the commit that a branch or tag meant last

There is no index beside it: the folders themselves say what is cached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localqwen.formats import gguf_parts
from localqwen.models.listing import Listing, RemoteFile

_PREFIX = "models--"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class CachedRepository:
    """The folder of one repository; it need not exist."""

    root: Path
    repo: str

    @property
    def folder(self) -> Path:
        return self.root / (_PREFIX + self.repo.replace("/", "--"))

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def locks(self) -> Path:
        """The folder where huggingface_hub and localqwen lock a blob while it is downloaded."""
        return self.root / ".locks" / self.folder.name

    def is_locked(self, digest: str) -> bool:
        """Return whether some process is downloading that blob."""
        from filelock import FileLock, Timeout

        lock = self.locks / f"{digest}.lock"
        if not lock.exists():
            return False
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True

    def existing(self, listed: Listing, file: RemoteFile) -> Path | None:
        """Return the file of that size under a final name: in the snapshot, or as a blob of another snapshot."""
        for path in (self.snapshot(listed.commit) / file.path, self.blobs / file.digest):
            if file.is_at(path):
                return path
        return None

    def partial(self, file: RemoteFile) -> Path:
        return self.blobs / f"{file.digest}.incomplete"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def snapshots(self) -> list[Path]:
        """Return the folders of snapshots: first that of `main`, then the newest."""
        main = _text(self.folder / "refs" / "main")
        folders = [path for path in _entries(self.folder / "snapshots") if path.is_dir()]
        return sorted(folders, key=lambda path: (path.name != main, -path.stat().st_mtime))

    def ggufs(self, wanted: Callable[[str], bool]) -> tuple[Path, ...] | None:
        """Return the parts of the GGUF model whose path in the repository is wanted; None if none is complete."""
        for snapshot in self.snapshots():
            found = [file for file in snapshot.rglob("*.gguf") if wanted(file.relative_to(snapshot).as_posix())]
            if complete := next(filter(gguf_parts.are_complete, gguf_parts.groups(found)), None):
                return complete
        return None

    def checkpoint(self) -> Path | None:
        """Return the first snapshot folder that holds a complete checkpoint."""
        return next((snapshot for snapshot in self.snapshots() if is_checkpoint(snapshot)), None)


def repositories(root: Path) -> Iterator[CachedRepository]:
    for folder in _entries(root):
        if folder.name.startswith(_PREFIX) and folder.is_dir():
            yield CachedRepository(root, folder.name.removeprefix(_PREFIX).replace("--", "/", 1))


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has config.json, tokenizer.json and all files of weights that its index names."""
    if not ((folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()):
        return False
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except FileNotFoundError:
        return (folder / "model.safetensors").is_file()
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(shards) and all((folder / str(shard)).is_file() for shard in shards)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
