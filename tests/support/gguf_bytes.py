"""GGUF files by hand, byte by byte, so that they can be wrong on purpose."""

from __future__ import annotations

import struct
from collections.abc import Sequence

UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, value: str | int) -> bytes:
    """A key with a text, or with a number as uint32."""
    data = struct.pack("<I", STRING) + text(value) if isinstance(value, str) else struct.pack("<II", UINT32, value)
    return text(key) + data


def head(entries: Sequence[bytes], infos: Sequence[bytes] = (), *, version: int = 3, more: int = 0) -> bytes:
    """A header that announces `more` entries than it has; no padding and no data follow."""
    counts = struct.pack("<IQQ", version, len(infos), len(entries) + more)
    return b"".join([b"GGUF", counts, *entries, *infos])


def info(name: str, dimensions: Sequence[int], kind: int, offset: int) -> bytes:
    """A line of the table of tensors; `dimensions` has the columns first."""
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


#: The metadata of a model of one layer, enough to tell its shape.
SHAPE = [
    entry("general.architecture", "qwen3"),
    entry("general.name", "Tiny"),
    text("general.tags") + struct.pack("<IIQ", ARRAY, STRING, 2) + text("a") + text("b"),
    text("general.numbers") + struct.pack("<IIQ", ARRAY, UINT32, 3) + bytes(12),
    entry("qwen3.context_length", 40960),
    entry("qwen3.block_count", 28),
    entry("qwen3.embedding_length", 1024),
    entry("qwen3.attention.head_count", 16),
    entry("qwen3.attention.head_count_kv", 8),
    entry("qwen3.attention.key_length", 128),
]
