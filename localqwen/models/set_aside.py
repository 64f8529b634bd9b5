"""The models that a running server on this machine has set aside, with its reasons: `localqwen list` shows them.

A server keeps one small file in the cache while it has any. Files of servers that have ended are removed by who reads.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from localqwen.errors import StorageError
from localqwen.models import store


def keep(reasons: Mapping[str, str]) -> None:
    """Let other programs know what this process has set aside: the name of a model, and why. A cache that cannot be
    written costs the note and nothing else."""
    file = _folder() / f"{os.getpid()}.json"
    with contextlib.suppress(OSError, StorageError):
        if reasons:
            store.make_folder(file.parent)
            file.write_text(json.dumps(dict(reasons)))
        else:
            file.unlink(missing_ok=True)


def reasons() -> dict[str, str]:
    """Return the models that servers have set aside, with the reasons."""
    import psutil

    found: dict[str, str] = {}
    for file in sorted(_folder().glob("*.json")):
        if file.stem.isdecimal() and psutil.pid_exists(int(file.stem)):
            found |= _read(file)
        else:
            with contextlib.suppress(OSError):
                file.unlink()
    return found


def _read(file: Path) -> dict[str, str]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}  # removed or being written at this moment
    return {name: reason for name, reason in data.items() if isinstance(reason, str)} if isinstance(data, dict) else {}


def _folder() -> Path:
    return store.cache_dir() / "set-aside"
