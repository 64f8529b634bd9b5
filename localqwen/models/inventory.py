"""Which models of the hubs' caches and of our conversions are here, under the names that a user gives them."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from localqwen.errors import LocalqwenError, NotPulled
from localqwen.formats import gguf_parts, model_header
from localqwen.models import cached, local_files, registry, sources, store
from localqwen.models.cached import CachedRepository
from localqwen.models.local_files import LocalFile
from localqwen.models.names import LocalPath, Named, Reference, Repository

#: The quantization of a repository that holds several, when the user names none.
USUAL_QUANT = "Q4_K_M"
_ARCHITECTURES = ("qwen3", "qwen3moe")


def find(reference: Reference) -> LocalFile | None:
    """Return the files of a named model, a repository or a GGUF file; None where they are not all here."""
    match reference:
        case Named():
            return _find_named(reference)
        case Repository():
            return _find_repository(reference)
        case LocalPath(path) if os.path.isfile(path):
            return local_files.local_file(path.stem, (path,), gguf_parts.quant_of(path))
        case LocalPath():
            return None


def _find_named(named: Named) -> LocalFile | None:
    model, quant = named.model, named.quant
    if named.mlx:
        return _mlx_folder(named)
    if quant in model.gguf:
        pattern = model.gguf[quant].file
        for repository in sources.everywhere(model.gguf_repo):
            parts = repository.ggufs(lambda path: fnmatch.fnmatch(path, pattern))
            if parts:
                return _of_entry(named, parts)
    converted = store.newest_converted(model.weights.repo, quant) if model.weights else None
    return _of_entry(named, (converted,)) if converted else None


def _of_entry(named: Named, parts: tuple[Path, ...]) -> LocalFile:
    return local_files.local_file(named.model.name, parts, named.quant, entry=named.model, command=named.text)


def _mlx_folder(named: Named) -> LocalFile | None:
    folder = complete_checkpoint(named.model.mlx[named.quant].repo)
    if folder is None:
        return None
    parts = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    found = local_files.local_file(named.text, parts, named.quant, entry=named.model, command=named.text)
    return replace(found, path=folder, engine="mlx")


def _find_repository(wanted: Repository) -> LocalFile | None:
    repository = sources.hub(wanted.source).cached(wanted.repo)
    quants = [wanted.quant] if wanted.quant else [USUAL_QUANT, ""]
    for quant in quants:
        parts = repository.ggufs(lambda path, quant=quant: is_of_quant(path, quant))  # type: ignore[misc]
        if parts:
            return _of_repository(wanted, parts)
    converted = store.newest_converted(wanted.repo, wanted.quant or "*")
    return _of_repository(wanted, (converted,)) if converted is not None else None


def _of_repository(repository: Repository, parts: tuple[Path, ...]) -> LocalFile:
    source, repo, quant = repository.source, repository.repo, gguf_parts.quant_of(parts[0])
    command = Repository(source, repo, quant).text
    return local_files.local_file(Repository(source, repo).text, parts, quant, command=command)


def is_of_quant(path: str, quant: str) -> bool:
    """Return whether a repository's file is a language model of that quantization; "" is any."""
    file = PurePosixPath(path)
    if file.suffix != ".gguf" or file.name.startswith("mmproj"):
        return False
    return not quant or gguf_parts.quant_of(file) == quant


def complete_checkpoint(repo: str) -> Path | None:
    """Return the folder of an official checkpoint that is complete in a cache."""
    folders = (repository.checkpoint() for repository in sources.everywhere(repo))
    return next((folder for folder in folders if folder is not None), None)


def pulled() -> Iterator[LocalFile]:
    """Yield named models first, by their entries, then whatever other Qwen3 GGUF files a cache holds."""
    known: set[Path] = set()
    for model in registry.models().values():
        for quant in (*model.quants, *model.mlx):
            file = local_files.described(_find_named, Named(model, quant))
            if file is not None:
                known.update(part.resolve() for part in file.parts)
                yield file
    for source in sources.MODULES:
        for repository in cached.repositories(sources.hub(source).cache_dir()):
            yield from _others(source, repository, known)
    yield from _converted_from_others()


def _others(source: str, repository: CachedRepository, seen: set[Path]) -> Iterator[LocalFile]:
    for snapshot in repository.snapshots():
        for parts in gguf_parts.groups([path for path in snapshot.rglob("*.gguf") if os.path.isfile(path)]):
            targets = {part.resolve() for part in parts}
            if targets & seen or not gguf_parts.are_complete(parts) or not _is_ours(parts[0]):
                continue
            seen |= targets
            reference = Repository("modelscope" if source == "modelscope" else "hf", repository.repo)
            file = local_files.described(_of_repository, reference, parts)
            if file is not None:
                yield file


def _converted_from_others() -> Iterator[LocalFile]:
    """Yield the conversions of repositories that have no entry."""
    named = {model.weights.repo for model in registry.models().values() if model.weights}
    for folder in sorted(path for path in store.converted_dir().glob("*--*") if path.is_dir()):
        repo = folder.name.replace("--", "/", 1)
        for path in sorted(folder.glob("*.gguf")) if repo not in named else ():
            file = local_files.described(_of_repository, Repository("hf", repo), (path,))
            if file is not None:
                yield file


def _is_ours(path: Path) -> bool:
    try:
        return model_header.read(path).architecture in _ARCHITECTURES
    except LocalqwenError:
        return False


def not_pulled(reference: Reference) -> NotPulled:
    """Return the error of a model that is not on this disk; the hint is the command that pulls it."""
    others = [file for file in pulled() if isinstance(reference, Named) and file.entry == reference.model]
    here = f"; {others[0].typed} is here" if others else ""
    engine = " --engine mlx" if isinstance(reference, Repository) and reference.mlx else ""
    return NotPulled(f"{reference.text} is not on this machine{here}", f"localqwen pull {reference.text}{engine}")


def on_disk() -> list[LocalFile]:
    """Return every model that can be run without a download, the largest first."""
    return sorted([*local_files.own_files(), *pulled()], key=lambda file: -file.bytes)
