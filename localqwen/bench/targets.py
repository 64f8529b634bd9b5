"""Describe a model for the head of a report: file, hash, bytes, quantization. Opens no engine."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from localqwen.bench.samples import Subject
from localqwen.errors import StorageError
from localqwen.formats import model_header
from localqwen.models import digests, fit, metadata, store
from localqwen.models.resolve import ResolvedModel

_CHUNK_BYTES = 1 << 22
#: Called with the name of a file and its bytes read so far.
Progress = Callable[[str, int], None]


def describe(model: ResolvedModel, *, label: str, kv: str = "f16", progress: Progress | None = None) -> Subject:
    """Return what a report says about a model and its engine; `kv` is the type of its keys and values.

    Raise ModelNotFound, NotPulled, FormatError.
    """
    path = model.path()
    header, found = model_header.read(path), metadata.of(path)
    return Subject(
        label=label,
        engine=model.engine,
        file=path.name,
        sha256=_sha256_of_folder(path, progress) if path.is_dir() else sha256(path, progress),
        quant=found.quant.lower() if path.is_dir() else found.quant,
        bytes=header.bytes,
        active_bytes=int(header.bytes * found.count.active_share),
        kv_bytes=header.kv_elements_per_token * fit.KV_BYTES[kv],
        parameters=found.count.parameters,
    )


def _sha256_of_folder(folder: Path, progress: Progress | None) -> str:
    """Return the hash of the hashes of a folder's weight files, in the order of their names."""
    hashes = (sha256(file, progress) for file in sorted(folder.glob("*.safetensors")))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def sha256(path: Path, progress: Progress | None = None) -> str:
    """Return the hash of a file, from the hub's cache or from ours, which keeps it until the file changes."""
    known = digests.declared(path)
    if len(known) == 64:
        return known
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    kept = store.cache_dir() / "hashes" / key
    if kept.exists():
        return kept.read_text()
    digest = _hashed(path, progress)
    with contextlib.suppress(OSError, StorageError):  # without a cache it is computed again next time
        store.make_folder(kept.parent)
        kept.write_text(digest)
    return digest


def _hashed(path: Path, progress: Progress | None) -> str:
    state, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(path.name, done)
    return state.hexdigest()
