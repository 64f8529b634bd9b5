"""An engine module that opens nothing: it remembers what it was asked to open, and a script answers."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from localqwen.engines import selection
from localqwen.engines.scripted import ScriptedEngine


@dataclass(frozen=True)
class Opening:
    """One call of an engine module's `open`."""

    engine: str
    path: Path
    options: dict[str, Any]
    opened: ScriptedEngine


@dataclass
class Recorder:
    """Stands in for the modules of both engines."""

    openings: list[Opening] = field(default_factory=list)
    answer: str = "fine"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(selection, "installed", lambda: dict.fromkeys(selection.ENGINES, True))
        for engine in selection.ENGINES:
            module = ModuleType(f"recording_{engine.replace('.', '_')}")
            vars(module)["open"] = lambda path, engine=engine, **options: self._open(engine, path, options)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            monkeypatch.setitem(selection.ENGINES, engine, module.__name__)

    def _open(self, engine: str, path: Path, options: dict[str, Any]) -> ScriptedEngine:
        length = options["context_length"] or 4096
        opened = ScriptedEngine(itertools.repeat(self.answer), context_length=length, max_runs=options["max_runs"])
        self.openings.append(Opening(engine, path, options, opened))
        return opened
