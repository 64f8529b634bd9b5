"""Find and name conversations on disk.

A name is a small file under `names/` that contains the file name of a log. Knows nothing about the contents of a log.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from localqwen.chat import session as sessions
from localqwen.chat.session import Session
from localqwen.errors import SessionError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Saved:
    """One line in the list of named conversations; `modified` is in seconds since 1970."""

    name: str
    path: Path
    model: str
    messages: int
    modified: float


def latest(folder: Path) -> Path | None:
    """Return the log that was written last, or None."""
    logs = [(path.stat().st_mtime_ns, path) for path in folder.glob("*.jsonl")]
    return max(logs)[1] if logs else None


def find(name: str, folder: Path) -> Path:
    """Return the log of a saved conversation. Raise SessionError with the nearest names if there is none."""
    _check(name)
    path = _target(_names(folder) / name)
    if path is not None:
        return path
    known = [saved.name for saved in listing(folder)]
    near = get_close_matches(name, known, 1)
    if near:
        raise SessionError(f"no conversation is called {name}", f"did you mean {near[0]}?")
    raise SessionError(
        f"no conversation is called {name}", f"saved: {', '.join(known)}" if known else "/save NAME saves one"
    )


def listing(folder: Path) -> list[Saved]:
    """Return the named conversations that can be read, the latest first."""
    found = []
    for pointer in _names(folder).glob("[!.]*"):
        path = _target(pointer)
        if path is None:
            continue
        with contextlib.suppress(SessionError):
            conversation = sessions.read(path)
            count = len(conversation.messages)
            found.append(Saved(pointer.name, path, conversation.model, count, path.stat().st_mtime))
    return sorted(found, key=lambda saved: -saved.modified)


def save(session: Session, name: str) -> None:
    """Give this conversation a name. Raise SessionError if the name is unsafe, or belongs to another conversation."""
    _check(name)
    session.create_log()
    if session.failure:
        raise session.failure
    pointer = _names(session.path.parent) / name
    owner = _target(pointer)
    if owner is not None and owner != session.path:
        raise _taken(name)
    if owner is None:
        _claim(pointer, session.path.name)
    session.set_name(name)


def _taken(name: str) -> SessionError:
    return SessionError(f"another conversation is called {name}", f"choose another name, e.g. /save {name}-2")


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise SessionError(
            f"{name!r} cannot be the name of a conversation",
            "use up to 64 letters, digits, dots, dashes and underscores; the first is a letter or digit",
        )


def _names(folder: Path) -> Path:
    return folder / "names"


def _target(pointer: Path) -> Path | None:
    """Return the log that a name stands for, or None if there is none or the log is gone."""
    try:
        file_name = pointer.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    path = pointer.parent.parent / file_name
    return path if file_name and path.name == file_name and path.is_file() else None


def _claim(pointer: Path, file_name: str) -> None:
    """Write the name. The file is written under another name and then linked, which fails if another chat took the name
    meanwhile."""
    sessions.private_folder(pointer.parent)
    beside = pointer.parent / f".{secrets.token_hex(4)}"
    try:
        beside.write_text(file_name)
        pointer.unlink(missing_ok=True)  # a name whose log is gone
        os.link(beside, pointer)
    except FileExistsError as exc:
        raise _taken(pointer.name) from exc
    except OSError as exc:
        raise SessionError(f"cannot write {pointer}: {exc.strerror}", "check that folder's permissions") from exc
    finally:
        beside.unlink(missing_ok=True)
