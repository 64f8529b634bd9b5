"""The head of a GGUF file as bytes: magic, metadata, tensor table. It knows nothing of the data that follow.

The layout is that of the GGUF specification, version 3. The head is built in memory, a few megabytes for a real
vocabulary, so that the size of the whole file is known before the first byte is written.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from localqwen.errors import CheckpointError
from localqwen.formats.dtypes import DType
from localqwen.formats.gguf_reader import ALIGNMENT, ARRAY, BOOL, FLOAT32, INT32, MAGIC, STRING, UINT16, UINT32

VERSION = 3


class Int32(int):
    """An int that llama.cpp writes signed, in 32 bits; a plain int becomes uint32, a float float32."""


class UInt16(int):
    """An int that llama.cpp writes unsigned, in 16 bits."""


Value = str | bool | int | float | Sequence[str] | Sequence[int]
Metadata = dict[str, Value]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the output; `shape` has rows first, and experts before them."""

    name: str
    shape: tuple[int, ...]
    type: DType

    @property
    def size(self) -> int:
        """Bytes of data, without padding."""
        return math.prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


def padding(size: int) -> int:
    """Return how many zero bytes follow `size` bytes of data."""
    return -size % ALIGNMENT


def entries(metadata: Metadata) -> list[bytes]:
    """Return each key with its value as GGUF bytes, without empty lists.

    Raise CheckpointError for text that is not Unicode.
    """
    given = {key: value for key, value in metadata.items() if isinstance(value, str | bool | int | float) or value}
    try:
        return [_string(key) + _value(value) for key, value in given.items()]
    except UnicodeEncodeError as exc:  # JSON can spell half a character, UTF-8 cannot
        raise CheckpointError(
            f"the checkpoint's JSON files hold text that is not Unicode: {exc.reason}", "download them again"
        ) from exc


def head(entries: Sequence[bytes], tensors: Sequence[StoredTensor]) -> bytes:
    """Return the bytes before the data of the first tensor, padding included. `entries` are keys with their values."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(entries)), *entries]
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]  # ggml counts the columns first
        parts.append(_string(tensor.name) + struct.pack("<I", len(dimensions)))
        parts.append(struct.pack(f"<{len(dimensions)}QIQ", *dimensions, tensor.type.number, offset))
        offset += tensor.size + padding(tensor.size)
    result = b"".join(parts)
    return result + bytes(padding(len(result)))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case Int32():
            return struct.pack("<Ii", INT32, value)
        case UInt16():
            return struct.pack("<IH", UINT16, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
    kind = STRING if isinstance(value[0], str) else INT32
    items = [_string(item) if isinstance(item, str) else struct.pack("<i", item) for item in value]
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)
