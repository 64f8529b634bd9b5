"""Whether the files of a loaded model are still those that were loaded.

Weights are mapped into memory: what another program writes into the file is what the model computes with. A file that
is replaced (a new one under the same name) or removed does no harm to who has the old one mapped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from localqwen.formats import gguf_parts

#: Path -> device, inode, size in bytes, modification time in nanoseconds.
Stamps = Mapping[str, tuple[int, int, int, int]]
#: What became of files: written to in place, or other files under the same names.
Change = Literal["modified", "replaced"]

#: What an engine reads of a folder.
_OF_FOLDER = ("*.safetensors", "*.json", "*.jinja", "*.txt")


def of(path: Path) -> Stamps:
    """Return the stamps of a GGUF file with all its parts, or of the files of a checkpoint folder."""
    if path.is_dir():
        files = [file for pattern in _OF_FOLDER for file in sorted(path.glob(pattern))]
    else:
        files = list(gguf_parts.present(path))
    return {str(file): stamp for file in files if (stamp := _stamp(str(file))) is not None}


def change(stamps: Stamps) -> Change | None:
    """Return what became of the files since, None where nothing did. A file that was removed has not changed."""
    found: Change | None = None
    for path, before in stamps.items():
        now = _stamp(path)
        if now is None or now == tuple(before):
            continue
        if now[:2] == tuple(before)[:2]:
            return "modified"
        found = "replaced"
    return found


def _stamp(path: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
