"""A folder that appears under its name whole or not at all: it is written hidden beside it, then renamed.

A killed run leaves a hidden folder `.<name>.<process id>-<random>.part`; the next run for the same target removes it.
With `force` the old folder becomes `….old` until the new one has its name; if a run is killed between the two renames,
the next run gives the old folder its name back.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.output import file as output_file
from convert.output.hashing import Digest, of_bytes
from convert.output.manifest import FOLDER_NAME
from convert.sources.checkpoint import COMPANIONS, Checkpoint
from localqwen.errors import OutputError


def check(out: Path, *, force: bool) -> None:
    """Raise OutputError if the folder `out` cannot be created, or exists and may not be replaced.

    An empty folder may always be filled. Only a folder that a conversion has written is ever replaced.
    """
    output_file.check_parent(out)
    if not os.path.lexists(out) or _is_empty(out):
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file", "name the folder to write")
    if not (out / FOLDER_NAME).is_file():
        raise OutputError(f"{out} exists, and no conversion wrote it: it has no {FOLDER_NAME}", "give another name")
    if not force:
        raise OutputError(f"{out} exists", "give another name, or --force to replace it")


@contextmanager
def writing(out: Path, *, size: int, force: bool) -> Iterator[Path]:
    """Give the body a folder for about `size` bytes; it becomes `out` if the body succeeds and is removed if it fails.

    Raise OutputError for what the file system refuses inside the body.
    """
    restore(out)
    part = _hidden(out, "part")
    try:
        part.mkdir()
        yield part
        output_file.sync_folder(part)
        check(out, force=force)  # another run may have been quicker
        _place(part, out)
        output_file.sync_folder(out.parent)
    except BaseException as exc:
        _remove(part)
        if isinstance(exc, OSError):
            raise output_file.output_error(out, size, exc) from exc
        raise


def restore(out: Path) -> None:
    """Remove what killed runs for `out` left, and rename a folder back that one of them had set aside."""
    pattern = re.compile(re.escape(f".{out.name}.") + r"(\d{1,9})-[0-9a-f]{8}\.(part|old)")
    with suppress(OSError):
        for path in sorted(out.parent.iterdir()):
            match = pattern.fullmatch(path.name)
            if match is None or not output_file.is_stale(path, int(match[1])):
                continue
            if match[2] == "old" and not os.path.lexists(out):
                path.rename(out)
            else:
                _remove(path)


def _place(part: Path, out: Path) -> None:
    """Rename `part` to `out`. Onto nothing or onto an empty folder that is atomic.

    It fails if another run has put something there.
    """
    if not os.path.lexists(out) or _is_empty(out):
        part.rename(out)
        return
    old = _hidden(out, "old")
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        with suppress(OSError):
            old.rename(out)
        raise
    _remove(old)


def _is_empty(out: Path) -> bool:
    return out.is_dir() and not out.is_symlink() and not any(out.iterdir())


def _hidden(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_small_files(folder: Path, checkpoint: Checkpoint, made: Mapping[str, bytes]) -> dict[str, Digest]:
    """Write `made`, and the files of COMPANIONS that a checkpoint has, to `folder`; return their digests by name."""
    contents = dict(made)
    for name in COMPANIONS:
        content = checkpoint.content(name)
        if content is not None:
            contents[name] = content
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: of_bytes(content) for name, content in contents.items()}
