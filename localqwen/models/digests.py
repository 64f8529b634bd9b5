"""The digest that a hub declares of a file, and whether a file has it.

The hub names a large file by the sha256 of its bytes (64 digits) and a small one by its git object id, the sha1 of a
header and its bytes (40 digits). Its cache on disk keeps each file under that name, so the name alone says what the
bytes must be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

_DECLARED = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_PIECE = 1 << 20


def is_digest(name: str) -> bool:
    return _DECLARED.fullmatch(name) is not None


def declared(file: Path) -> str:
    """Return the digest that the cache keeps a file under, "" where the file is not a link into it."""
    name = file.resolve().name
    return name if is_digest(name) else ""


def matches(file: Path, digest: str, hashed: Callable[[int], None] | None = None) -> bool:
    """Return whether the whole file has that digest. `hashed` takes how many bytes are done."""
    # git's choice of sha1, which is all that the hub declares of a small file
    state = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(_git_header(file), usedforsecurity=False)
    done = 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            state.update(piece)
            done += len(piece)
            if hashed:
                hashed(done)
    return state.hexdigest() == digest


def _git_header(file: Path) -> bytes:
    return f"blob {file.stat().st_size}\0".encode()
