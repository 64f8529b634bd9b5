"""What a repository holds, as a hub lists it: the values that pass between hubs and pulls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from localqwen.errors import HubError
from localqwen.models.digests import is_digest


@dataclass(frozen=True)
class RemoteFile:
    """`path` in the repository, size in bytes, and the digest that the hub declares (see digests.py)."""

    path: str
    bytes: int
    digest: str

    def __post_init__(self) -> None:
        """Refuse what leads out of the folder: paths and digests become paths on this disk."""
        parts = PurePosixPath(self.path).parts
        if not parts or ".." in parts or "\\" in self.path or self.path.startswith("/") or not is_digest(self.digest):
            raise HubError(
                f"the hub lists a file that cannot be: {self.path!r} ({self.digest!r})", "name another source"
            )

    def is_at(self, path: Path) -> bool:
        """Return whether a file of that size lies there. (`digests.matches` reads its bytes.)"""
        return path.is_file() and path.stat().st_size == self.bytes


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit. `revision` is the branch or tag that was requested."""

    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


Report = Callable[[str, int], None]
"""Takes what happens to a file (`load`, `wait`, `check`) and how many of its bytes are done."""
