"""What a model is, for the head of a report: file, hash, bytes, quantisation. Opens no engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from localqwen.bench.samples import Subject
from localqwen.models import digests, fit, gguf_header, store
from localqwen.models.cached import quant_of
from localqwen.models.resolve import ResolvedModel

_PIECE = 1 << 22
Progress = Callable[[str, int], None]


def describe(model: ResolvedModel, *, label: str, kv: str = "f16", progress: Progress | None = None) -> Subject:
    """Return what a model is. `kv` is the type of its keys and values. Raise ModelNotFound, NotPulled."""
    path, entry = model.path(), model.entry
    if path.is_dir():
        return _folder(path, label, model.engine, kv, progress)
    header = gguf_header.read(path)
    share = entry.active / entry.parameters if entry and entry.parameters else 1.0
    return Subject(
        label=label,
        engine=model.engine,
        file=path.name,
        sha256=sha256(path, progress),
        quant=quant_of(path),
        bytes=header.bytes,
        active_bytes=int(header.bytes * share),
        kv_bytes=header.kv_elements_per_token * fit.KV_BYTES[kv],
        parameters=entry.parameters if entry else 0,
    )


def _folder(path: Path, label: str, engine: str, kv: str, progress: Progress | None) -> Subject:
    """An MLX model: config.json and safetensors. The hash is that of its files' hashes, in the order of their names."""
    files = sorted(path.glob("*.safetensors"))
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    total = sum(file.stat().st_size for file in files)
    elements = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    bits = config.get("quantization", {}).get("bits")
    digest = hashlib.sha256("".join(sha256(file, progress) for file in files).encode()).hexdigest()
    return Subject(
        label=label, engine=engine, file=path.name, sha256=digest, quant=f"{bits}bit" if bits else "bf16",
        bytes=total, active_bytes=total, kv_bytes=elements * fit.KV_BYTES[kv],
    )  # fmt: skip


def sha256(path: Path, progress: Progress | None = None) -> str:
    """Of the file's bytes: the hub's cache knows it, ours remembers it for a file that has not changed since."""
    known = digests.declared(path)
    if len(known) == 64:
        return known
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    kept = store.cache_dir() / "hashes" / key
    if kept.exists():
        return kept.read_text()
    digest = _hashed(path, progress)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(digest)
    return digest


def _hashed(path: Path, progress: Progress | None) -> str:
    state, done = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            state.update(piece)
            done += len(piece)
            if progress is not None:
                progress(path.name, done)
    return state.hexdigest()
