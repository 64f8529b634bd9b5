"""The header of a GGUF file (versions 2 and 3), walked from its first byte. Raises ValueError.

The numbers come from strangers: every read is checked against the end of the file, and no count makes anything large.
The header is read, not mapped: a file that is cut meanwhile would end the process at the next access to its map.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import BinaryIO, NamedTuple

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
#: No header is larger: Qwen3's vocabulary has 6 MB. A longer one is not read into memory.
_MAX_HEADER = 100_000_000
_MAX_TEXT = 1 << 24
#: The bytes of a key and of a tensor's name (the specification of GGUF, "File Structure").
_MAX_KEY, _MAX_NAME = 65_535, 64
#: The most entries, tensors, and texts in lists. The largest Qwen3 has 1,131 tensors; its vocabulary and its merges
#: are 303,323 texts.
_MAX_ENTRIES, _MAX_TENSORS, _MAX_LISTED = 1 << 16, 1 << 16, 1 << 22
_PIECE = 1 << 16
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


class _Beginning:
    """A file from its first byte, read as far as it is needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = bytearray()
        self.size = os.fstat(file.fileno()).st_size

    def upto(self, end: int) -> bytearray:
        """Return the first bytes of the file, at least `end` of them. Raise ValueError if there are fewer."""
        if end > len(self._data):
            if end > _MAX_HEADER:
                raise ValueError(f"its header has more than {_MAX_HEADER:,} bytes")
            self._data += self._file.read(max(end, 2 * len(self._data), _PIECE) - len(self._data))
            if end > len(self._data):
                raise ValueError("it ends inside its header")
        return self._data


class HeaderReader:
    """Walks the header of an open file once: first all `entries`, then `tensors`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = _Beginning(file), 4
        self._listed = 0
        if not self._file.size:
            raise ValueError("it is an empty file")
        magic = bytes(self._file.upto(min(4, self._file.size))[:4])
        if magic != MAGIC:
            raise ValueError(f"it begins with {magic!r}")
        version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(_unknown_version(version))
        self._tensors, self._entries = self._count(24, _MAX_TENSORS), self._count(12, _MAX_ENTRIES)

    def entries(self) -> Iterator[Entry]:
        seen: set[str] = set()
        for _ in range(self._entries):
            begin = self._at
            key = self._text(_MAX_KEY)
            value = self._value(self._number("I"))
            if key in seen:
                raise ValueError(f"the key {key[:100]!r} comes twice")
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
        _check_places(found, self._file.size)
        return found

    def _info(self) -> GgufTensor:
        """Read a line of the table; its `start` counts from the end of the header."""
        name = self._text(_MAX_NAME)
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
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"one of its values is {value}")
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
        self._listed += count
        if self._listed > _MAX_LISTED:
            raise ValueError(f"its lists have {self._listed:,} texts")
        at, data, unpack = self._at, self._file.upto(self._at), _LENGTH.unpack_from
        for _ in range(count):
            if at + 8 > len(data):
                self._file.upto(at + 8)  # the same bytes, and more of them
            at += 8 + unpack(data, at)[0]
        if at > self._file.size:
            raise ValueError("it ends inside a text")
        self._at = at

    def _count(self, least: int, most: int | None = None) -> int:
        """Return how many things follow that take at least `least` bytes each: never more than the file can hold."""
        count = self._number("Q")
        if count * least > self._file.size - self._at or (most is not None and count > most):
            raise ValueError(f"a count of {count:,} cannot be right")
        return count

    def _text(self, most: int = _MAX_TEXT) -> str:
        length = self._number("Q")
        begin, self._at = self._at, self._at + length
        if self._at > self._file.size:
            raise ValueError("it ends inside a text")
        if length > most:
            raise ValueError(f"a text of {length:,} bytes cannot be right")
        return self._file.upto(self._at)[begin : self._at].decode()

    def _number(self, letter: str) -> int:
        value: int
        size = struct.calcsize("<" + letter)
        (value,) = struct.unpack_from("<" + letter, self._file.upto(self._at + size), self._at)
        self._at += size
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
