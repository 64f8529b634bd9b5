"""Hugging Face's hub through its own client: what a repository holds, and its files, checked by their digests.

The only module that imports `huggingface_hub`. Session, tokens, mirrors (HF_ENDPOINT), proxies, HF_HUB_OFFLINE, the
cache's place and the links in it are the client's. The transfer is ours, because the client throws away what it has
when it is interrupted: a file grows as `blobs/DIGEST.incomplete`, is resumed there next time, and gets its name only
when its bytes have the digest that the hub declared.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localqwen.errors import DamagedFile
from localqwen.models import digests
from localqwen.models.cached import CachedRepository
from localqwen.models.hub_errors import WrongLength, is_transient, mapped
from localqwen.models.listing import Listing, RemoteFile, Report

#: Seconds to wait before each new try of a transfer that brought nothing; any byte that comes starts them again.
WAITS = (0.5, 1.0, 2.0, 4.0)
_PIECE = 1 << 16
_LOCK_POLL_SECONDS = 0.5


def cache_dir() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def host() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT.partition("://")[2]


def cached(repo: str) -> CachedRepository:
    return CachedRepository(cache_dir(), repo)


def listing(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub what a repository holds. Raise HubRefused, HubError."""
    api = _quiet_client().HfApi()
    with mapped(repo):
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=30)
        files = tuple(_remote(sibling) for sibling in info.siblings or ())
        if not digests.is_digest(str(info.sha)):
            raise ValueError(f"{info.sha!r} is no commit")
        return Listing(repo, revision or "main", str(info.sha), files)


def _remote(sibling: Any) -> RemoteFile:
    return RemoteFile(sibling.rfilename, int(sibling.size), str(sibling.lfs.sha256 if sibling.lfs else sibling.blob_id))


def state(listed: Listing, file: RemoteFile) -> int:
    """Return how many bytes of the file are here already: all of them where it has its size."""
    repository = cached(listed.repo)
    if repository.existing(listed, file) is not None:
        return file.bytes
    partial = repository.partial(file)
    return min(partial.stat().st_size, file.bytes) if partial.exists() else 0


def fetch(listed: Listing, file: RemoteFile, report: Report) -> Path:
    """Return the complete, checked file under its own name in the cache. Raise HubError, DamagedFile, StorageError."""
    repository = cached(listed.repo)
    link = repository.snapshot(listed.commit) / file.path
    with mapped(listed.repo, file.path):
        if file.is_at(link) and _is_intact(link, file, report):
            return link  # needs no lock, and therefore no right to write
        with _locked(repository, file, report):
            here = repository.existing(listed, file)
            if here is None or not _is_intact(here, file, report):
                _remove_wrong(repository, listed, file)
                _load(repository, listed, file, report)
        client = _quiet_client()
        return Path(client.hf_hub_download(listed.repo, file.path, revision=listed.commit, cache_dir=repository.root))


def remember(listed: Listing) -> None:
    """Write which commit the revision means, as the client does: other programs then find the files offline by it."""
    reference = cached(listed.repo).folder / "refs" / listed.revision
    if listed.revision != listed.commit:
        with contextlib.suppress(OSError):  # as the client: without this right the files can be used all the same
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(listed.commit, encoding="utf-8")


def _is_intact(path: Path, file: RemoteFile, report: Report) -> bool:
    return digests.matches(path, file.digest, lambda done: report("check", done))


def _remove_wrong(repository: CachedRepository, listed: Listing, file: RemoteFile) -> None:
    (repository.snapshot(listed.commit) / file.path).unlink(missing_ok=True)
    (repository.blobs / file.digest).unlink(missing_ok=True)


def _load(repository: CachedRepository, listed: Listing, file: RemoteFile, report: Report) -> None:
    """Transfer what is missing, check it, and give it its name."""
    partial = repository.partial(file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    resumed = partial.exists() and partial.stat().st_size > 0
    _transfer(partial, listed, file, report)
    if _is_intact(partial, file, report):
        os.replace(partial, repository.blobs / file.digest)
        return
    partial.unlink()
    if not resumed:
        raise _damaged(listed, file)
    _load(repository, listed, file, report)  # once more from nothing: the earlier beginning may be what is wrong


def _damaged(listed: Listing, file: RemoteFile) -> DamagedFile:
    return DamagedFile(
        f"{file.path} of {listed.repo} came damaged: its bytes do not have the digest {file.digest[:16]}… that "
        f"{host()} declares; it was removed",
        "run the same command again; if it happens again, the mirror or a proxy on the way changes files",
    )


def _transfer(partial: Path, listed: Listing, file: RemoteFile, report: Report) -> None:
    """Append until the file has its size. Raise the client's errors where the last try brought nothing."""
    import httpx2

    waits = iter(WAITS)
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _append(partial, listed, file, report)
            return
        except (OSError, httpx2.HTTPError, WrongLength) as exc:
            if not is_transient(exc):
                raise
            if partial.exists() and partial.stat().st_size > before:
                waits = iter(WAITS)
            pause = next(waits, None)
            if pause is None:
                raise
            time.sleep(pause)


def _append(partial: Path, listed: Listing, file: RemoteFile, report: Report) -> None:
    from huggingface_hub import constants

    client, utils = _quiet_client(), _utils()
    with partial.open("ab", buffering=0) as target:
        if target.tell() > file.bytes:
            target.truncate(0)
        begin = target.tell()
        report("load", begin)
        if begin == file.bytes:
            return
        url = client.hf_hub_url(listed.repo, file.path, revision=listed.commit)
        # identity: a compressed transfer cannot be resumed
        headers = utils.build_hf_headers() | {"Accept-Encoding": "identity"}
        if begin:
            headers["Range"] = f"bytes={begin}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with client.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            utils.hf_raise_for_status(response)
            if begin and not _resumes_at(response, begin):
                target.truncate(0)
                begin = 0
            _write(target, response, begin, file, report)


def _resumes_at(response: Any, begin: int) -> bool:
    answered = response.headers.get("Content-Range", "").strip()
    return bool(response.status_code == 206 and answered.startswith(f"bytes {begin}-"))


def _write(target: Any, response: Any, done: int, file: RemoteFile, report: Report) -> None:
    """Append the body to the file. Raise WrongLength where it is shorter or longer than the hub declared."""
    for piece in response.iter_bytes(_PIECE):
        if done + len(piece) > file.bytes:
            target.truncate(0)
            raise WrongLength(f"more than the declared {file.bytes:,} bytes came")
        target.write(piece)
        done += len(piece)
        report("load", done)
    if done < file.bytes:
        raise WrongLength(f"only {done:,} of {file.bytes:,} bytes came")


@contextlib.contextmanager
def _locked(repository: CachedRepository, file: RemoteFile, report: Report) -> Iterator[None]:
    """Hold the client's own lock of this blob: one process loads it, others wait and then find it."""
    from filelock import Timeout

    lock = repository.locks / f"{file.digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(_utils().WeakFileLock(lock, timeout=_LOCK_POLL_SECONDS))
                break
            except Timeout:
                partial = repository.partial(file)
                with contextlib.suppress(FileNotFoundError):
                    report("wait", partial.stat().st_size)
        yield


def _quiet_client() -> Any:
    """Return the package. What it would log, our errors say."""
    import huggingface_hub

    _utils().logging.set_verbosity_error()
    return huggingface_hub


def _utils() -> Any:
    from huggingface_hub import utils

    return utils
