"""ModelScope through its own client (`pip install 'localqwen[modelscope]'`), into the layout of Hugging Face's cache.

The client loads a file, resumes it after an interruption, and checks its sha256; where the files lie is ours. Its
MODELSCOPE_API_TOKEN and MODELSCOPE_ENDPOINT keep their meaning. It knows no commits, so a snapshot is named by a digest
of what it lists.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localqwen.errors import DamagedFile, HubError, HubRefused, LocalqwenError, StorageError, Unsupported
from localqwen.models import digests, store
from localqwen.models.cached import CachedRepository
from localqwen.models.listing import Listing, RemoteFile, Report

_AGAIN = "run the same command again; what came is kept, and it is resumed from there"


def cache_dir() -> Path:
    return store.home() / "modelscope"


def host() -> str:
    return str(os.environ.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn")).partition("://")[2].rstrip("/")


def cached(repo: str) -> CachedRepository:
    return CachedRepository(cache_dir(), repo)


def listing(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub what a repository holds. Raise HubRefused, HubError, Unsupported without the client."""
    revision = revision or "master"
    with _mapped(repo):
        found = _package().HubApi().list_repo_files(repo, "model", revision=revision)
    files = tuple(RemoteFile(file.path, int(file.size), str(file.sha256)) for file in found if file.type != "tree")
    state = sorted((file.path, file.digest) for file in files)
    return Listing(repo, revision, hashlib.sha1(repr(state).encode(), usedforsecurity=False).hexdigest(), files)


def state(listed: Listing, file: RemoteFile) -> int:
    """Return how many bytes of the file are here already."""
    repository = cached(listed.repo)
    if repository.existing(listed, file) is not None:
        return file.bytes
    begun = sum(path.stat().st_size for path in _loading(repository, file).rglob("*") if path.is_file())
    return min(begun, file.bytes)


def fetch(listed: Listing, file: RemoteFile, report: Report) -> Path:
    """Return the complete, checked file under its own name. Raise HubError, DamagedFile, StorageError."""
    repository = cached(listed.repo)
    link = repository.snapshot(listed.commit) / file.path
    with _mapped(f"{file.path} of {listed.repo}"):
        if file.is_at(link) and digests.matches(link, file.digest, lambda done: report("check", done)):
            return link
        with _locked(repository, file, report):
            blob = repository.blobs / file.digest
            if not file.is_at(blob) or not digests.matches(blob, file.digest, lambda done: report("check", done)):
                _load(repository, listed, file, report)
            _link(blob, link)
    return link


def remember(listed: Listing) -> None:
    """Do nothing: no other program reads this folder by revision."""


def _load(repository: CachedRepository, listed: Listing, file: RemoteFile, report: Report) -> None:
    folder = _loading(repository, file)
    folder.mkdir(parents=True, exist_ok=True)
    report("load", state(listed, file))
    target = (
        _package()
        .HubApi()
        .downloader.download_file(
            listed.repo,
            "model",
            file.path,
            revision=listed.revision,
            local_dir=folder,
            expected_sha256=file.digest,
            file_size=file.bytes,
            progress_callbacks=[_teller(report)],
        )
    )
    if not digests.matches(target, file.digest, lambda done: report("check", done)):
        target.unlink()
        raise DamagedFile(f"{file.path} of {listed.repo} came damaged; it was removed", _AGAIN)
    repository.blobs.mkdir(parents=True, exist_ok=True)
    os.replace(target, repository.blobs / file.digest)
    shutil.rmtree(folder)


def _loading(repository: CachedRepository, file: RemoteFile) -> Path:
    return repository.folder / "loading" / file.digest


def _link(blob: Path, link: Path) -> None:
    """Link as Hugging Face's client does: relative, and a copy where links are not allowed."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.copyfile(blob, link)


def _teller(report: Report) -> type:
    """Return the class that the client wants for a file: it reports pieces, we report sums."""

    class Teller:
        def __init__(self, filename: str, file_size: int) -> None:
            self._done = 0

        def update(self, size: int) -> None:
            self._done += size
            report("load", self._done)

        def end(self) -> None:
            pass

    return Teller


@contextlib.contextmanager
def _locked(repository: CachedRepository, file: RemoteFile, report: Report) -> Iterator[None]:
    from filelock import FileLock, Timeout

    repository.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(repository.locks / f"{file.digest}.lock")
    with contextlib.ExitStack() as held:
        while not lock.is_locked:
            try:
                held.enter_context(lock.acquire(timeout=0.5))
            except Timeout:
                report("wait", 0)
        yield


def _package() -> Any:
    """Return the client's package with its bar switched off: tqdm reads that when it is imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import modelscope_hub
    except ImportError as exc:
        raise Unsupported("ModelScope's client is not installed", "pip install 'localqwen[modelscope]'") from exc
    return modelscope_hub


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Raise a LocalqwenError for what the client, the network and the disk raise inside."""
    errors = _package().errors
    try:
        yield
    except LocalqwenError:
        raise
    except errors.NotExistError as exc:
        raise HubRefused(f"{what} is not on {host()}", "check the name on its page") from exc
    except (errors.AuthenticationError, errors.PermissionDeniedError) as exc:
        raise HubRefused(f"{host()} refuses {what}: {exc}", "set MODELSCOPE_API_TOKEN") from exc
    except errors.FileIntegrityError as exc:
        raise DamagedFile(f"{what} came damaged again and again; it was removed", _AGAIN) from exc
    except errors.HubError as exc:
        raise HubError(f"{host()} failed for {what}: {exc}", _AGAIN) from exc
    except OSError as exc:
        if exc.errno is None:
            raise HubError(f"the connection to {host()} failed for {what}: {exc}", _AGAIN) from exc
        raise StorageError(f"cannot write {what}: {exc.strerror}", "choose another folder: LOCALQWEN_HOME=…") from exc
