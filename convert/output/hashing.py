"""sha256 of what a conversion reads and writes, on threads of their own: hashlib releases the interpreter's lock.

With a second core that is idle, a conversion takes no longer for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO

from convert.output import file as output_file
from localqwen.errors import CheckpointError
from localqwen.machine.posix import write_back

_PIECE = 1 << 20
_SYNC_EVERY = 128 << 20
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Digest:
    """The length of a file, and the sha256 of its bytes as 64 hexadecimal digits.

    `declared` says that the hub gave the sha256, which its client keeps with the file; it was not computed here.
    """

    bytes: int
    sha256: str
    declared: bool = False

    def json(self) -> dict[str, int | str | bool]:
        """Return the digest as a manifest records it."""
        fields: dict[str, int | str | bool] = {"bytes": self.bytes, "sha256": self.sha256}
        return fields | ({"declared": True} if self.declared else {})


def of_bytes(content: bytes) -> Digest:
    """Return the digest of bytes in memory."""
    return Digest(len(content), hashlib.sha256(content).hexdigest())


class InputHashes:
    """The digests of files, computed while the `with` body reads the same pages.

    A large file that a hub's client has downloaded is not hashed: in quick conversions that is a third of the work.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._stop = Event()
        self._pool = ThreadPoolExecutor(1, "hash-inputs")

    def __enter__(self) -> InputHashes:
        self._future: Future[dict[str, Digest]] = self._pool.submit(self._hash_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def result(self) -> dict[str, Digest]:
        """Wait for the digests; return them by file name. Raise CheckpointError for a file that cannot be read."""
        try:
            return self._future.result()
        except OSError as exc:
            raise CheckpointError(f"{exc.filename or 'the checkpoint'} cannot be read: {exc}", "convert again") from exc

    def _hash_all(self) -> dict[str, Digest]:
        return {path.name: _declared(path) or self._hash(path) for path in self._files}

    def _hash(self, path: Path) -> Digest:
        state, length, buffer = hashlib.sha256(), 0, memoryview(bytearray(_PIECE))
        with path.open("rb", buffering=0) as file:
            while not self._stop.is_set() and (count := file.readinto(buffer)):
                state.update(buffer[:count])
                length += count
        return Digest(length, state.hexdigest())


def _declared(path: Path) -> Digest | None:
    """Return the hub's digest of a large file, None for others: git names small ones by their sha1."""
    sha256 = _named_by_the_cache(path) or _noted_by_the_download(path)
    return Digest(path.stat().st_size, sha256, declared=True) if sha256 else None


def _named_by_the_cache(path: Path) -> str | None:
    """Return the sha256 in the name of a file in huggingface_hub's cache, a link to blobs/SHA256."""
    blob = path.resolve()
    named = path.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name)
    return blob.name if named else None


def _noted_by_the_download(path: Path) -> str | None:
    """Return the sha256 that `hf download --local-dir` notes in a file of its own: revision, sha256, time, a line each.

    It is valid until the file is written to; as in huggingface_hub (_local_folder.py), times may differ by a second.
    """
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        _, sha256, noted = note.read_text(encoding="utf-8").split()
        unchanged = path.stat().st_mtime - 1 <= float(noted)
    except (OSError, ValueError):  # none, or not of this form: the file is hashed
        return None
    return sha256 if unchanged and _SHA256.fullmatch(sha256) else None


class HashedWriter:
    """Writes to a file while a thread hashes the same bytes. Use with `with`; the file stays open.

    Another thread makes the system flush them to the disk meanwhile, so that the sync at the end hardly waits.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._state = hashlib.sha256()
        self._length = 0
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(2, "hash-output")

    def __enter__(self) -> HashedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, data: memoryview) -> None:
        """Write `data`; return when it is also hashed, so that its owner may free it."""
        hashing = self._pool.submit(self._state.update, data)
        output_file.write(self._file, data)
        hashing.result()
        self._length += data.nbytes
        self._unsynced += data.nbytes
        if self._unsynced >= _SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._sync_result()
            self._unsynced = 0
            self._syncing = self._pool.submit(write_back, self._file.fileno())

    def digest(self) -> Digest:
        """Return the digest of all bytes. Raise OSError for what the disk refused."""
        self._sync_result()
        return Digest(self._length, self._state.hexdigest())

    def _sync_result(self) -> None:
        """Raise the error of the last flush; the system reports a failed write once, to whoever syncs next."""
        if self._syncing is not None:
            self._syncing.result()
