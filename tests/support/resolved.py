"""Models as the code below the edge takes them."""

from __future__ import annotations

from pathlib import Path

from localqwen.engines import selection
from localqwen.models.names import LocalPath
from localqwen.models.resolve import ResolvedModel


def scripted(name: str = "scripted") -> ResolvedModel:
    """A model of that name without files: its engine is the test's own."""
    return ResolvedModel(name, LocalPath(Path(name)), "scripted")


def file_of(name: str | Path, engine: str = "llama.cpp") -> Path:
    """What that engine opens, converted where that is needed."""
    return selection.resolve(name, engine).path()
