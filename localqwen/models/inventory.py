"""Which models of the hubs' caches and of our conversions are here, under the names that a user gives them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from localqwen.errors import LocalqwenError
from localqwen.formats import gguf_parts, model_header
from localqwen.models import cached, names, registry, sources, store
from localqwen.models.cached import CachedRepository
from localqwen.models.names import LocalPath, Named, Reference, Repository
from localqwen.models.store import LocalFile

#: The quantisation of a repository that holds several, when the user names none.
USUAL_QUANT = "Q4_K_M"
#: What a checkpoint becomes when nothing else is said: close to lossless, half the size of 16 bit.
CHECKPOINT_QUANT = "Q8_0"
_ARCHITECTURES = ("qwen3", "qwen3moe")


def find(reference: Reference) -> LocalFile | None:
    """The files of a named model or a repository, None where they are not all here."""
    match reference:
        case Named():
            return _find_named(reference)
        case Repository():
            return _find_repository(reference)
        case LocalPath(path):
            return store.local_file(path.stem, (path,), gguf_parts.quant_of(path)) if path.is_file() else None


def _find_named(named: Named) -> LocalFile | None:
    model, quant = named.model, named.quant
    if named.mlx:
        return _checkpoint(named.text, model.mlx[quant].repo, quant)
    if quant in model.gguf:
        pattern = model.gguf[quant].file
        for repository in sources.everywhere(model.gguf_repo):
            parts = repository.ggufs(lambda path: fnmatch.fnmatch(path, pattern))
            if parts:
                return store.local_file(model.name, parts, quant)
    made = store.made(model.weights.repo, quant) if model.weights else None
    return store.local_file(model.name, (made,), quant) if made else None


def _checkpoint(name: str, repo: str, quant: str) -> LocalFile | None:
    for repository in sources.everywhere(repo):
        folder = repository.checkpoint()
        if folder is not None:
            files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
            found = store.local_file(name, files, quant, "mlx")
            return LocalFile(name, folder, found.bytes, quant, found.modified, "mlx", files, found.used)
    return None


def _find_repository(wanted: Repository) -> LocalFile | None:
    repository = sources.hub(wanted.source).cached(wanted.repo)
    quants = [wanted.quant] if wanted.quant else [USUAL_QUANT, ""]
    for quant in quants:
        parts = repository.ggufs(lambda path, quant=quant: is_of_quant(path, quant))  # type: ignore[misc]
        if parts:
            return store.local_file(Repository(wanted.source, wanted.repo).text, parts, gguf_parts.quant_of(parts[0]))
    made = store.made(wanted.repo, wanted.quant or "*")
    if made is not None:
        return store.local_file(Repository(wanted.source, wanted.repo).text, (made,), gguf_parts.quant_of(made))
    return None


def is_of_quant(path: str, quant: str) -> bool:
    """Whether a repository's file is a language model of that quantisation; "" is any."""
    file = PurePosixPath(path)
    if file.suffix != ".gguf" or file.name.startswith("mmproj"):
        return False
    return not quant or gguf_parts.quant_of(file) == quant


def whole_weights(repo: str) -> Path | None:
    """The folder of an official checkpoint that is wholly in a cache."""
    folders = (repository.checkpoint() for repository in sources.everywhere(repo))
    return next((folder for folder in folders if folder is not None), None)


def pulled() -> Iterator[LocalFile]:
    """Named models first by their entries, then whatever other Qwen3 GGUF files a cache holds."""
    known: set[Path] = set()
    for model in registry.models().values():
        for quant in (*model.quants, *model.mlx):
            file = _find_named(Named(model, quant))
            if file is not None:
                known.update(part.resolve() for part in file.parts)
                yield file
    for source in sources.MODULES:
        for repository in cached.repositories(sources.hub(source).cache_dir()):
            yield from _others(source, repository, known)
    yield from _made_from_others()


def _others(source: str, repository: CachedRepository, seen: set[Path]) -> Iterator[LocalFile]:
    for snapshot in repository.snapshots():
        for parts in gguf_parts.groups([path for path in snapshot.rglob("*.gguf") if path.is_file()]):
            targets = {part.resolve() for part in parts}
            if targets & seen or not gguf_parts.are_complete(parts) or not _is_ours(parts[0]):
                continue
            seen |= targets
            name = Repository("modelscope" if source == "modelscope" else "hf", repository.repo).text
            yield store.local_file(name, parts, gguf_parts.quant_of(parts[0]))


def _made_from_others() -> Iterator[LocalFile]:
    """Conversions of repositories that have no entry."""
    named = {model.weights.repo for model in registry.models().values() if model.weights}
    for folder in sorted(path for path in store.converted_dir().glob("*--*") if path.is_dir()):
        repo = folder.name.replace("--", "/", 1)
        for file in sorted(folder.glob("*.gguf")) if repo not in named else ():
            yield store.local_file(Repository("hf", repo).text, (file,), gguf_parts.quant_of(file))


def _is_ours(path: Path) -> bool:
    try:
        return model_header.read(path).architecture in _ARCHITECTURES
    except LocalqwenError:
        return False


def command_name(file: LocalFile) -> str:
    """What to type to run it: its name with the quantisation where that is needed, else its path."""
    try:
        reference = names.parse(file.name)
    except LocalqwenError:
        return str(file.path)
    match reference:
        case Named(model):
            return Named(model, file.quant).text
        case Repository(source, repo):
            return Repository(source, repo, file.quant).text
    return str(file.path)


def on_disk() -> list[LocalFile]:
    """Every model that can be run without a download, the largest first."""
    return sorted([*store.own_files(), *pulled()], key=lambda file: -file.bytes)
