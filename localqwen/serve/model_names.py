"""Which models a client may name, and how one is opened. A client never names a path: only the command line does."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localqwen.chat.model_info import LoadedModel
from localqwen.errors import LocalqwenError, ModelNotFound, NotPulled

if TYPE_CHECKING:
    from localqwen.models.names import Named, Repository

_log = logging.getLogger("localqwen.serve")

#: Ollama's clients put this behind a name without a tag.
_LATEST = ":latest"
BUILT_IN = "demo"
LONGEST_NAME = 200


@dataclass(frozen=True)
class Known:
    """`name` is what clients say, `source` what `engines.open` takes. Bytes and seconds since 1970; 0 is unknown."""

    name: str
    source: str
    bytes: int = 0
    modified: float = 0.0
    quant: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Opening:
    """How every model is opened; see `localqwen.engines.open`. The adapter is for those of the command line."""

    engine: str | None = None
    context_length: int | None = None
    threads: int | None = None
    max_runs: int = 4
    force: bool = False
    kv_quant: int | None = None
    adapter: str | None = None


class Catalogue:
    """The models of the command line first (the first of them is the default), then what else is on disk."""

    def __init__(self, served: Sequence[str], opening: Opening) -> None:
        from localqwen.models import names

        self._served = {names.display(source): source for source in served}
        self._opening = opening
        self._sources = dict(self._served)  # resolved name -> source

    @property
    def served(self) -> tuple[str, ...]:
        """The names of the models of the command line."""
        return tuple(self._served)

    def known(self) -> list[Known]:
        """Looks at the disk."""
        from localqwen.models import inventory

        found = {name: _known(name, source) for name, source in self._served.items()}
        for file in inventory.on_disk():
            command = inventory.command_name(file)
            name = file.name if command == str(file.path) else command
            found.setdefault(name, Known(name, command, file.bytes, file.modified, file.quant, file.path))
        return [*found.values()]

    def find(self, asked: str) -> Known:
        """What a client means by a name. Raises ModelNotFound that lists what exists, NotPulled."""
        name = asked.removesuffix(_LATEST) or self.served[0]
        if name in self._served:
            return _known(name, self._served[name])
        found = {each.name: each for each in self.known()}
        reference = None if name in found else _reference(name)
        text = reference.text if reference is not None else name
        if text in found:
            return found[text]
        if text == BUILT_IN:
            return Known(text, text)
        raise _not_found(name, list(found))

    def resolve(self, asked: str) -> str:
        """The name that `open` takes."""
        known = self.find(asked)
        self._sources[known.name] = known.source
        return known.name

    def open(self, name: str) -> LoadedModel:
        """Takes a resolved name. Raises whatever stands against opening it."""
        from localqwen import engines
        from localqwen.chat.model_info import info_of
        from localqwen.chat.sampling import Presets
        from localqwen.models import names

        began = time.perf_counter()
        source, how = self._sources[name], self._opening
        engine = engines.open(
            source,
            engine=how.engine,
            context_length=how.context_length,
            threads=how.threads,
            max_runs=how.max_runs,
            force=how.force,
            kv_quant=how.kv_quant,
            adapter=how.adapter if name in self._served else None,
        )
        for warning in engine.warnings:
            _log.warning("%s: %s", name, warning)
        model = names.model_of(source)
        load_ms = (time.perf_counter() - began) * 1000
        info = info_of(
            engine,
            name,
            thinking_mode=model.thinking if model else None,
            load_ms=load_ms,
            presets=Presets.of(model.sampling if model else {}),
        )
        return LoadedModel(engine, info)


def _known(name: str, source: str) -> Known:
    from localqwen.models import inventory, names

    reference = names.understood(source)
    file = inventory.find(reference) if reference is not None else None
    if file is None:
        return Known(name, source)
    return Known(name, source, file.bytes, file.modified, file.quant, file.path)


def _reference(name: str) -> Named | Repository | None:
    """The entry or repository that a client means; None for nonsense and for anything that could be a path."""
    from localqwen.models import names

    if len(name) > LONGEST_NAME or not name.isprintable():
        return None
    repository = name.partition(":")[0].lower() in names.SOURCES
    if not repository and names.looks_like_path(name):
        return None
    reference = names.understood(name)
    return None if isinstance(reference, names.LocalPath) else reference


def _not_found(name: str, here: Sequence[str]) -> LocalqwenError:
    from localqwen.models import provide

    hint = f"models here: {', '.join(here)}"
    reference = _reference(name)
    if reference is None:
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
        return ModelNotFound(f"there is no model {shown!r}", hint)
    missing = provide.not_pulled(reference)
    return NotPulled(missing.message, f"{missing.hint}; {hint}")
