"""The header of a GGUF file (versions 2 and 3), walked from its first byte. Raises ValueError, or what struct raises.

The numbers come from strangers: every read is checked against the end of the data, and no count makes anything large.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from localqwen.formats.dtypes import GGUF, DType

MAGIC, VERSIONS = b"GGUF", (2, 3)
#: The multiple at which tensors begin if `general.alignment` does not say another one.
ALIGNMENT = 32
#: GGUF's numbers for the types of values.
UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9
#: The types of values with a fixed size: GGUF's number -> struct's letter.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
_MAX_DIMENSIONS = 4
#: No metadata are larger: those of Qwen3's vocabulary have 6 MB. A longer header is not read into memory.
_MAX_METADATA = 100_000_000
_MAX_TEXT = 1 << 24
_MAX_ALIGNMENT = 1 << 20

Value = str | bool | int | float


class Entry(NamedTuple):
    """A key and its value; None for a list, which is passed over. The entry is bytes [begin, end) of the file."""

    key: str
    value: Value | None
    begin: int
    end: int


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the table: `shape` has rows first, and experts before them; `start` is the offset in the file."""

    name: str
    type: DType
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


class HeaderReader:
    """Walks a header once: first all `entries`, then `tensors`."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4
        if data[:4] != MAGIC:
            raise ValueError(f"it begins with {bytes(data[:4])!r}")
        version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(_unknown_version(version))
        self._tensors, self._entries = self._count(24), self._count(12)

    def entries(self) -> Iterator[Entry]:
        seen: set[str] = set()
        for _ in range(self._entries):
            begin = self._at
            key = self._text()
            value = self._value(self._number("I"))
            if self._at > _MAX_METADATA:
                raise ValueError(f"its metadata have more than {_MAX_METADATA:,} bytes")
            if key in seen:
                raise ValueError(f"the key {key!r} comes twice")
            seen.add(key)
            yield Entry(key, value, begin, self._at)

    def tensors(self, alignment: Value = ALIGNMENT) -> list[GgufTensor]:
        """Return the table that stands behind the entries. `alignment` is what the entries say."""
        if type(alignment) is not int or not _is_alignment(alignment):
            raise ValueError(f"an alignment of {alignment!r}, not a power of two from 8")
        infos = [self._info() for _ in range(self._tensors)]
        start = self._at + -self._at % alignment
        for info in infos:
            if info.start % alignment:
                raise ValueError(f"{info.name!r} begins at {info.start:,}, which is no multiple of {alignment}")
        found = [GgufTensor(info.name, info.type, info.shape, start + info.start) for info in infos]
        _check_places(found, len(self._data))
        return found

    def _info(self) -> GgufTensor:
        """Read a line of the table; its `start` counts from the end of the header."""
        name = self._text()
        dimensions = self._number("I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        number, offset = self._number("I"), self._number("Q")
        dtype = GGUF.get(number)
        if dtype is None:
            raise ValueError(f"{name!r} has the type {number}, which is not known")
        if not all(shape) or not dtype.fits(shape[-1]):
            raise ValueError(f"{name!r} of {dtype.name} cannot be {list(shape)}")
        return GgufTensor(name, dtype, shape, offset)

    def _value(self, kind: int) -> Value | None:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            self._skip_list()
            return None
        value: Value = self._number(_letter(kind))
        return value

    def _skip_list(self) -> None:
        kind = self._number("I")
        if kind == STRING:
            self._skip_texts(self._count(8))
        else:
            size = struct.calcsize(_letter(kind))
            count = self._count(size)
            self._at += count * size

    def _skip_texts(self, count: int) -> None:
        """Pass over a vocabulary, which has hundreds of thousands of texts: the names are local for speed."""
        at, data, size, unpack = self._at, self._data, len(self._data), _LENGTH.unpack_from
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
            if at > size:
                raise ValueError("it ends inside a text")
        self._at = at

    def _count(self, least: int) -> int:
        """Return how many things follow that take at least `least` bytes each: never more than the file can hold."""
        count = self._number("Q")
        if count * least > len(self._data) - self._at:
            raise ValueError(f"a count of {count:,} cannot be right")
        return count

    def _text(self) -> str:
        length = self._number("Q")
        begin, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("it ends inside a text")
        if length > _MAX_TEXT:
            raise ValueError(f"a text of {length:,} bytes cannot be right")
        return self._data[begin : self._at].decode()

    def _number(self, letter: str) -> int:
        value: int
        (value,) = struct.unpack_from("<" + letter, self._data, self._at)
        self._at += struct.calcsize("<" + letter)
        return value


def _unknown_version(version: int) -> str:
    if version and version & 0xFFFF == 0:
        return "it was written for big-endian machines"
    return f"GGUF version {version} is not known; versions {' and '.join(map(str, VERSIONS))} are"


def _is_alignment(value: int) -> bool:
    return 8 <= value <= _MAX_ALIGNMENT and value & (value - 1) == 0


def _letter(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"{kind} is no type of a value")
    return _SCALARS[kind]


def _check_places(tensors: Sequence[GgufTensor], size: int) -> None:
    """Raise ValueError unless every tensor has a name and a place in the file of its own."""
    seen: set[str] = set()
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.name in seen:
            raise ValueError(f"the tensor {tensor.name!r} comes twice")
        if tensor.start + tensor.bytes > size:
            raise ValueError(f"{tensor.name!r} does not lie in the file, which has {size:,} bytes")
        if tensor.start < end:
            raise ValueError(f"{tensor.name!r} overlaps another tensor")
        seen.add(tensor.name)
        end = tensor.start + tensor.bytes
