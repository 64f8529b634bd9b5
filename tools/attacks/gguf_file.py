"""A GGUF file to be changed on purpose: its entries and tensors as bytes, written again whatever they have become.

Knows the layout of the file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and not what is sensible.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from localqwen.formats.gguf import GgufFile
from localqwen.formats.gguf_reader import GgufTensor

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
_LETTERS = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?", UINT64: "Q", INT64: "q", FLOAT64: "d"}
_ALIGNMENT = 32
TOKENS = "tokenizer.ggml.tokens"


def text(value: str | bytes) -> bytes:
    """Return a text with its length before it. Bytes need not be UTF-8."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def scalar(kind: int, value: float | str | bytes) -> bytes:
    """Return a value with its type before it."""
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return struct.pack("<I", STRING) + text(value)
    return struct.pack("<I" + _LETTERS[kind], kind, value)


def texts(values: Sequence[str | bytes]) -> bytes:
    """Return a list of texts as a value."""
    return struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(text, values))


def numbers(kind: int, values: Sequence[float]) -> bytes:
    """Return a list of numbers of one type as a value."""
    return struct.pack(f"<IIQ{len(values)}{_LETTERS[kind]}", ARRAY, kind, len(values), *values)


@dataclass(frozen=True)
class Tensor:
    """A line of the table of tensors with its data; `dimensions` has the columns first, `kind` is GGUF's number."""

    name: str
    dimensions: tuple[int, ...]
    kind: int
    data: bytes

    def line(self, offset: int) -> bytes:
        """Return its line of the table."""
        head = text(self.name) + struct.pack("<I", len(self.dimensions))
        return head + struct.pack(f"<{len(self.dimensions)}QIQ", *self.dimensions, self.kind, offset)


@dataclass(frozen=True)
class Gguf:
    """A model: `values` by key as they stand in the file, type first; `repeated` are keys to be written twice."""

    values: dict[str, bytes]
    tensors: tuple[Tensor, ...]
    repeated: tuple[str, ...] = ()
    prefix: str = field(default="qwen3")

    def with_value(self, key: str, value: bytes) -> Gguf:
        """Return a copy with this value; a key that begins with a dot is one of the architecture."""
        return replace(self, values={**self.values, self.full(key): value})

    def without(self, key: str) -> Gguf:
        """Return a copy without the key."""
        return replace(self, values={name: value for name, value in self.values.items() if name != self.full(key)})

    def with_tensor(self, tensor: Tensor) -> Gguf:
        """Return a copy in which this tensor replaces the one of the same name."""
        return replace(self, tensors=tuple(tensor if each.name == tensor.name else each for each in self.tensors))

    def full(self, key: str) -> str:
        """Return the key with the architecture before it where it begins with a dot."""
        return self.prefix + key if key.startswith(".") else key

    def list_of_texts(self, key: str) -> list[bytes]:
        """Return the texts of a list."""
        value, at, found = self.values[key], 16, []
        while at < len(value):
            (length,) = struct.unpack_from("<Q", value, at)
            found.append(value[at + 8 : at + 8 + length])
            at += 8 + length
        return found

    def number(self, key: str) -> int:
        """Return a value that is an uint32."""
        value: int = struct.unpack_from("<I", self.values[self.full(key)], 4)[0]
        return value

    def written(self, *, version: int = 3) -> bytes:
        """Return the bytes of the file."""
        entries = [text(key) + self.values[key] for key in (*self.values, *self.repeated)]
        lines, data = self._table()
        head = struct.pack("<4sIQQ", b"GGUF", version, len(self.tensors), len(entries)) + b"".join([*entries, *lines])
        return head + bytes(-len(head) % _ALIGNMENT) + data

    def _table(self) -> tuple[list[bytes], bytes]:
        lines, data = [], bytearray()
        for tensor in self.tensors:
            lines.append(tensor.line(len(data)))
            data += tensor.data + bytes(-len(tensor.data) % _ALIGNMENT)
        return lines, bytes(data)


def read(path: Path) -> Gguf:
    """Return an intact file. Raise FormatError for one that is not."""
    content = path.read_bytes()
    with closing(GgufFile(path)) as file:
        values = {key: entry[len(text(key)) :] for key, entry in file.entries.items()}
        tensors = [_tensor(each, content) for each in file.tensors.values()]
    return Gguf(values, tuple(tensors))


def _tensor(found: GgufTensor, content: bytes) -> Tensor:
    assert found.type.number is not None
    return Tensor(found.name, found.shape[::-1], found.type.number, content[found.start : found.start + found.bytes])


def data_start(content: bytes) -> int:
    """Return roughly where the data of an intact file of `written` begins: behind its largest name of a tensor."""
    return content.rfind(b".weight", 0, min(len(content), 1 << 20)) + 64
