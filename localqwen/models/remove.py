"""Removes a model: its files, but nothing that another name needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localqwen.errors import NotPulled, StorageError, UsageError
from localqwen.models import digests, inventory, names, sources, store
from localqwen.models.cached import CachedRepository
from localqwen.models.names import LocalPath, Named, Reference, Repository


@dataclass(frozen=True)
class Removed:
    """The files that are gone and the bytes that became free; `kept` are files that another name still needs."""

    files: tuple[Path, ...]
    freed_bytes: int
    kept: tuple[Path, ...]


def remove(reference: Reference) -> Removed:
    """Remove a model. Raise NotPulled where nothing of it is here, UsageError for a file that is not in our store."""
    if isinstance(reference, LocalPath):
        return _own(reference.path)
    names.refuse_built_in(reference, "remove")
    found, weights = inventory.find(reference), _weights_of(reference)
    partials = list(_partials(reference))
    if found is None and weights is None and not partials:
        raise inventory.not_pulled(reference)
    doomed = list(found.parts) if found else []
    kept: list[Path] = []
    if weights is not None:
        others = [path for path in store.converted_repository(weights).glob("*.gguf") if path not in doomed]
        files = [file for repository in sources.everywhere(weights) for file in _snapshot_files(repository)]
        (kept if others else doomed).extend(files)
    return _unlink([*doomed, *(link for file in doomed for link in _other_snapshots(file)), *partials], kept)


def _weights_of(reference: Named | Repository) -> str | None:
    """Return the repository whose weights were loaded only to be converted into this, if they are here."""
    match reference:
        case Named(model, quant) if not reference.mlx and quant not in model.gguf and model.weights:
            repo = model.weights.repo
        case Repository(repo=repo):
            pass
        case _:
            return None
    return repo if inventory.complete_checkpoint(repo) is not None else None


def _snapshot_files(repository: CachedRepository) -> list[Path]:
    return [path for folder in repository.snapshots() for path in sorted(folder.rglob("*")) if not path.is_dir()]


def _other_snapshots(file: Path) -> list[Path]:
    """Return the same file in every snapshot of its repository: older links to the same bytes."""
    snapshots = next((parent for parent in file.parents if parent.name == "snapshots"), None)
    if snapshots is None:
        return []
    relative = Path(*file.relative_to(snapshots).parts[1:])
    return [folder / relative for folder in sorted(snapshots.iterdir()) if (folder / relative).is_symlink()]


def _partials(reference: Named | Repository) -> Iterable[Path]:
    """Return incomplete files that a pull left, but not those that another process is loading right now."""
    match reference:
        case Named(model, quant) if reference.mlx:
            repo = model.mlx[quant].repo
        case Named(model, quant) if quant in model.gguf:
            repo = model.gguf_repo
        case Named(model):
            repo = model.weights.repo if model.weights else ""
        case Repository(repo=repo):
            pass
    for repository in sources.everywhere(repo) if repo else ():
        for partial in repository.blobs.glob("*.incomplete"):
            if not repository.is_locked(partial.stem):
                yield partial


def _own(path: Path) -> Removed:
    if not _is_ours(path):
        raise UsageError(f"{path} is not in localqwen's store", "remove it yourself; localqwen list shows what is")
    if not path.is_file():
        raise NotPulled(f"there is no file {path}", "localqwen list")
    return _unlink([path], [])


def _is_ours(path: Path) -> bool:
    folders = (store.home() / "models", store.converted_dir())
    try:
        return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, ValueError):  # a link that may not be followed, or a text that no file can be named by
        return False


def _unlink(files: Iterable[Path], kept: list[Path]) -> Removed:
    """Remove files and links, their manifests, then blobs that no link points to any more, then empty folders."""
    gone, freed = dict.fromkeys(each for file in files for each in (file, *_manifest(file))), 0
    repositories = {_repository_folder(file) for file in gone} - {None}
    targets = {file.resolve() for file in gone if file.is_symlink()}
    try:
        for file in gone:
            freed += 0 if file.is_symlink() else file.stat().st_size
            file.unlink()
        freed += sum(_drop_blob(target) for target in targets)
        for folder in repositories:
            _tidy(folder)
    except OSError as exc:
        raise StorageError(f"cannot remove {exc.filename}: {exc.strerror}", "check who owns that folder") from exc
    return Removed(tuple(gone), freed, tuple(kept))


def _manifest(file: Path) -> list[Path]:
    """Return what a conversion has written beside it. A file of a hub's cache has none."""
    manifest = store.manifest(file)
    return [manifest] if file.suffix == ".gguf" and not file.is_symlink() and manifest.is_file() else []


def _repository_folder(file: Path) -> Path | None:
    return next((parent for parent in file.parents if parent.name.startswith("models--")), None)


def _drop_blob(blob: Path) -> int:
    """Return the bytes that became free: none while another link needs the blob."""
    folder = _repository_folder(blob)
    if folder is None or not digests.is_digest(blob.name) or not blob.exists():
        return 0
    if any(link.resolve() == blob for link in (folder / "snapshots").rglob("*") if link.is_symlink()):
        return 0
    size = blob.stat().st_size
    blob.unlink()
    return size


def _tidy(folder: Path | None) -> None:
    """Remove empty folders, and the folder of a repository without any file of a snapshot as a whole."""
    if folder is None or not folder.exists():
        return
    for path in sorted((folder / "snapshots").rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    snapshots = folder / "snapshots"
    if not snapshots.exists() or not any(snapshots.iterdir()):
        shutil.rmtree(folder)
        shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
