"""Checks a model: is every file what the hub declared, and can it be opened? Reads all of it; changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localqwen.errors import LocalqwenError, ModelNotFound
from localqwen.formats import model_header
from localqwen.models import digests, inventory, names
from localqwen.models.local_files import LocalFile
from localqwen.models.names import LocalPath, Reference


@dataclass(frozen=True)
class Verdict:
    """What is found of a file. `digest` is what the hub declared, "" for one that was made here; `problem` is "" for a
    good file."""

    path: Path
    bytes: int
    digest: str
    problem: str


def files_of(reference: Reference) -> LocalFile:
    """Return the files to check. Raise NotPulled, ModelNotFound, UsageError for the built-in model."""
    names.refuse_built_in(reference, "verify")
    found = inventory.find(reference)
    if found is None and isinstance(reference, LocalPath):
        raise ModelNotFound(f"there is no model file {reference.path}", "give a .gguf file, or a name: localqwen list")
    if found is None:
        raise inventory.not_pulled(reference)
    return found


def verify(file: LocalFile, hashed: Callable[[Path, int], None]) -> list[Verdict]:
    """Return one verdict per file. `hashed` takes a file and how many of its bytes are done."""
    return [_verdict(path, path == file.parts[0], hashed) for path in file.parts]


def _verdict(path: Path, is_first: bool, hashed: Callable[[Path, int], None]) -> Verdict:
    digest = digests.declared(path)
    problem = ""
    try:
        if digest and not digests.matches(path, digest, lambda done: hashed(path, done)):
            problem = "its bytes are not what the hub declared"
        elif path.suffix == ".gguf" and is_first:
            model_header.read(path)
    except LocalqwenError as exc:
        problem = exc.message
    except OSError as exc:
        problem = f"it cannot be read: {exc.strerror}"
    return Verdict(path, path.stat().st_size, digest, problem)
