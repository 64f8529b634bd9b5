"""Which models a client may name, and how one is loaded. A client never names a path: only the command line does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localqwen.chat.load_options import LoadOptions
from localqwen.errors import ConfigError, LocalqwenError, ModelNotFound, NotPulled, UsageError
from localqwen.model_process import file_stamps
from localqwen.model_process.process import ModelSpec

if TYPE_CHECKING:
    from localqwen.models.local_files import LocalFile
    from localqwen.models.names import Named, Repository
    from localqwen.models.registry import Model
    from localqwen.models.resolve import ResolvedModel

#: Ollama's clients append this to a name without a tag.
_LATEST = ":latest"
BUILT_IN = "demo"
LONGEST_NAME = 200


@dataclass(frozen=True)
class KnownModel:
    """A model that a client may name: its name for clients, its files and its entry in models.toml, if it has them."""

    name: str
    files: LocalFile | None = None
    entry: Model | None = None


class Catalogue:
    """The models that clients can name: those of the command line first (the first is the default), then the others on
    disk.

    All are loaded with the same options, but the adapter applies only to those of the command line.
    """

    def __init__(self, served: Sequence[ResolvedModel], options: LoadOptions) -> None:
        self._served = {model.display: model for model in served}
        self._options = options
        self._typed: dict[str, str] = {}  # the name of another model -> its name on the command line

    @property
    def served(self) -> tuple[str, ...]:
        """Return the names of the models of the command line."""
        return tuple(self._served)

    def known(self) -> list[KnownModel]:
        """Return all models. It reads the disk."""
        from localqwen.models import inventory

        found = {name: _known(name, model) for name, model in self._served.items()}
        for file in inventory.on_disk():
            if _is_text(file.shown):
                found.setdefault(file.shown, KnownModel(file.shown, file, file.entry))
        return [*found.values()]

    def find(self, wanted: str) -> KnownModel:
        """Return the model that a client names. Raise ModelNotFound with the names that exist, or NotPulled."""
        name = wanted.removesuffix(_LATEST) if wanted else self.served[0]
        if name in self._served:
            return _known(name, self._served[name])
        found = {each.name: each for each in self.known()}
        reference = None if name in found else _reference(name)
        text = reference.text if reference is not None else name
        if text in found:
            return found[text]
        if text == BUILT_IN:
            return _built_in()
        raise _not_found(wanted, reference, list(found))

    def resolve(self, wanted: str) -> str:
        """Return the name that `spec` takes. Raise what `find` raises."""
        known = self.find(wanted)
        self._typed[known.name] = known.files.typed if known.files else known.name
        return known.name

    def spec(self, name: str) -> ModelSpec:
        """Return what a process opens for a name that `resolve` returned. It reads the disk."""
        from localqwen.engines import selection
        from localqwen.models import resolve

        options, served = self._options, self._served.get(name)
        if served is not None:
            model = resolve.located(served)  # its files may have moved since it was unloaded
        else:
            model, options = selection.resolve(self._typed[name], options.engine), replace(options, adapter=None)
        files = file_stamps.of(model.files.path) if model.files else {}
        # The engine that was chosen here: in the child, with less memory left, the choice might be another.
        return ModelSpec(model.name, name, replace(options, engine=model.engine), files)


def _is_text(name: str) -> bool:
    """Return whether a file's name can be written as UTF-8; no client could name it otherwise."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _known(name: str, model: ResolvedModel) -> KnownModel:
    from localqwen.models import resolve

    return KnownModel(name, resolve.located(model).files, model.entry)


def _built_in() -> KnownModel:
    from localqwen.models import converted, local_files, registry

    entry = registry.find(BUILT_IN)
    files = local_files.local_folder(converted.demo_checkpoint(), BUILT_IN, "", entry=entry)
    return KnownModel(BUILT_IN, replace(files, command=BUILT_IN), entry)


def pullable(wanted: str) -> Named | Repository:
    """Return the entry or repository that a client wants to download. Raise ModelNotFound for any other text."""
    return _parsed(wanted.removesuffix(_LATEST))


def _reference(name: str) -> Named | Repository | None:
    """Return the entry or repository that a client means, or None if the text is not a name or could be a path."""
    try:
        return _parsed(name)
    except ModelNotFound:
        return None


def _parsed(name: str) -> Named | Repository:
    from localqwen.models import names

    repository = name.partition(":")[0].lower() in names.SOURCES
    if len(name) > LONGEST_NAME or not name.isprintable() or (not repository and names.looks_like_path(name)):
        raise names.unknown(name)
    try:
        reference = names.parse(name)
    except ConfigError:  # a broken models.toml says nothing about the name
        raise
    except UsageError as exc:
        raise names.unknown(name) from exc
    if isinstance(reference, names.LocalPath):  # the file is new
        raise names.unknown(name)
    return reference


def _not_found(name: str, reference: Named | Repository | None, here: Sequence[str]) -> LocalqwenError:
    from localqwen.models import inventory

    hint = f"available models: {', '.join(here)}"
    if reference is None:
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
        return ModelNotFound(f"there is no model {shown!r}", hint)
    missing = inventory.not_pulled(reference)
    return NotPulled(missing.message, f"{missing.hint}; {hint}")
