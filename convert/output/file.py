"""A file that appears under its name whole or not at all: it is written beside it, then renamed.

A killed run leaves a file `<name>.<process id>-<random>.part`; the next run for the same target removes it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from localqwen.errors import OutputError
from localqwen.machine.posix import sync_file

_STALE_AFTER = 24 * 60 * 60  # seconds without a write; by then its process id may be another program's
_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


def check(out: Path, *, force: bool) -> None:
    """Raise OutputError if `out` cannot be created, or exists and may not be replaced."""
    check_parent(out)
    if out.is_dir():
        raise OutputError(f"{out} is a folder", f"name the file, such as {out / 'model.gguf'}")
    if out.exists() and not force:
        raise OutputError(f"{out} exists", "give another name, or --force to replace it")


def check_parent(out: Path) -> None:
    """Raise OutputError if the folder of `out` does not exist."""
    if not out.parent.is_dir():
        raise OutputError(f"there is no folder {out.parent}", f"mkdir -p {out.parent}")


def check_space(out: Path, size: int) -> None:
    """Raise OutputError if `size` bytes do not fit beside `out`, which keeps its space until the end."""
    free = shutil.disk_usage(out.parent).free
    if free < size:
        raise OutputError(
            f"{out.name} needs {size:,} bytes, {out.parent} has {free:,} free",
            "free some space, or choose another disk",
        )


@contextmanager
def writing(out: Path, *, size: int, force: bool) -> Iterator[BinaryIO]:
    """Give the body a file to write `size` bytes to; it becomes `out` if the body succeeds and is removed if it fails.

    Raise OutputError for what the file system refuses inside the body.
    """
    remove_stale(out)
    part = out.with_name(f"{out.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("xb", buffering=0) as file:
            yield file
            if file.tell() != size:
                raise OutputError(f"{out.name} got {file.tell():,} bytes where {size:,} were planned", "convert again")
            sync_file(file.fileno())
        check(out, force=force)  # another run may have been quicker
        os.replace(part, out)
        sync_folder(out.parent)
    except BaseException as exc:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise output_error(out, size, exc) from exc
        raise


def write(file: BinaryIO, data: memoryview) -> None:
    """Write all of `data`; an unbuffered file may take less at once, for example on a nearly full disk."""
    while data:
        data = data[file.write(data) :]


def remove_stale(out: Path) -> None:
    """Remove the parts of killed runs for `out`: their process is gone, or has written nothing for a day."""
    pattern = re.compile(re.escape(out.name) + r"\.(\d{1,9})-[0-9a-f]{8}\.part")
    with suppress(OSError):
        for path in out.parent.iterdir():
            match = pattern.fullmatch(path.name)
            if match and is_stale(path, int(match[1])):
                path.unlink(missing_ok=True)


def is_stale(path: Path, process: int) -> bool:
    """Return whether the process that wrote a file or folder is gone, or has written nothing for a day."""
    import psutil

    if not psutil.pid_exists(process):
        return True
    written = max(each.stat().st_mtime for each in (path, *(path.iterdir() if path.is_dir() else ())))
    return bool(time.time() - written > _STALE_AFTER)


def output_error(out: Path, size: int, exc: OSError) -> OutputError:
    """Return the error of a file system that refused to write `size` bytes for `out`."""
    if exc.errno in _FULL:
        with suppress(OSError):
            free = shutil.disk_usage(out.parent).free
            return OutputError(
                f"{out.parent} is full: {out.name} needs {size:,} bytes, {free:,} are free",
                "free some space, or choose another disk",
            )
    if exc.errno == errno.EFBIG:
        return OutputError(
            f"{out.parent} takes no file of {size:,} bytes",
            "its file system (FAT32 ends at 4 GB) or `ulimit -f` forbids it; GGUF may come in parts: --split 3GB",
        )
    return OutputError(f"{out} cannot be written: {exc.strerror or exc}", "check the folder and its permissions")


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut, on systems that can open folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync_file(handle)
        finally:
            os.close(handle)
