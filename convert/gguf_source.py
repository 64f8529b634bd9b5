"""An existing GGUF file as a source of tensors: read strictly, because its numbers come from strangers.

Knows nothing of quantisations. All parts of a split file are one source.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert.gguf_file import ALIGNMENT, ARRAY, MAGIC, STRING
from localqwen.errors import CheckpointError
from localqwen.formats.dtypes import TYPES, TensorType
from localqwen.formats.safetensors import NUMPY_TYPES, SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Values of a fixed size: GGUF's number of the type -> struct's letter.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4
_MAX_PARTS = 1000
#: No metadata are larger: those of Qwen3's vocabulary have 6 MB. What is longer is not read into memory.
_MAX_METADATA = 100_000_000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_REPAIR = "download or convert it again"
_BY_NUMBER = {kind.number: kind for kind in TYPES.values()}

Scalar = str | bool | int | float


@dataclass(frozen=True)
class GgufTensor:
    """`shape` has rows first, and experts before them; `start` is the offset in the file."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


class GgufPart:
    """One open file: `entries` by key as they stand there, `values` of those that are no lists, `tensors` by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.size = os.fstat(file.fileno()).st_size
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"{path} cannot be read: {exc}", _REPAIR) from exc
        try:
            reader = _Reader(self._map)
            self.entries, self.values = reader.entries()
            self.tensors = reader.tensors(self.values)
        except (ValueError, struct.error, UnicodeDecodeError) as exc:
            self.close()
            raise CheckpointError(f"{path} is no whole GGUF file: {exc}", _REPAIR) from exc

    def rows(self, tensor: SourceTensor, first: int, count: int) -> NDArray[np.generic]:
        """Rows [first, first + count) as a view on the file: numbers of its type, or (count, row's bytes)."""
        import numpy as np

        dtype = np.dtype(NUMPY_TYPES.get(tensor.dtype, "u1"))
        offset = tensor.start + first * tensor.row_bytes
        return np.frombuffer(self._map, dtype, count * tensor.row_bytes // dtype.itemsize, offset).reshape(count, -1)

    def forget(self, tensor: SourceTensor, rows: int) -> None:
        """Gives the pages of the tensor's first `rows` rows back, or memory would grow to the size of the file."""
        first = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        end = tensor.start + rows * tensor.row_bytes
        if hasattr(mmap, "MADV_DONTNEED") and end > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)

    def close(self) -> None:
        with suppress(BufferError):
            self._map.close()


class GgufSource:
    """A GGUF model, all its parts. Use with `with`; raises CheckpointError.

    `tensors` are what can be read: matrices by name, stacks of experts as `name[0]`, `name[1]`, …
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._parts: list[GgufPart] = []
        self.tensors: dict[str, SourceTensor] = {}
        self._home: dict[str, GgufPart] = {}
        self.stored: dict[str, GgufTensor] = {}
        try:
            for file in parts_of(path):
                self._parts.append(GgufPart(file))
                self._add(self._parts[-1])
            self._check_whole()
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> dict[str, bytes]:
        """The metadata as they stand in the first part, without what tells how the file is split."""
        return {key: entry for key, entry in self._parts[0].entries.items() if not key.startswith("split.")}

    @property
    def values(self) -> dict[str, Scalar]:
        return self._parts[0].values

    @property
    def data_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.stored.values())

    @property
    def weight_files(self) -> list[Path]:
        return [part.path for part in self._parts]

    def files(self, names: Iterable[str]) -> list[Path]:
        return self.weight_files

    def file_of(self, name: str) -> GgufPart:
        return self._home[name]

    def sources(self, tensor: GgufTensor) -> tuple[str, ...]:
        """The names under which `tensors` has it: one, or one per expert."""
        if len(tensor.shape) < 3:
            return (tensor.name,)
        return tuple(f"{tensor.name}[{expert}]" for expert in range(tensor.shape[0]))

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, part: GgufPart) -> None:
        for tensor in part.tensors.values():
            if tensor.name in self.stored:
                raise CheckpointError(f"{part.path} has {tensor.name} once more", _REPAIR)
            self.stored[tensor.name] = tensor
            names = self.sources(tensor)
            size = tensor.bytes // len(names)
            for number, name in enumerate(names):
                start = tensor.start + number * size
                self.tensors[name] = SourceTensor(name, tensor.type.name, tensor.shape[-2:], start, size)
                self._home[name] = part

    def _check_whole(self) -> None:
        """A part that says how many tensors the whole has, and one that is alone but should not be."""
        first = self._parts[0]
        count, tensors = first.values.get("split.count", 1), first.values.get("split.tensors.count")
        if count not in (len(self._parts), 0):
            raise CheckpointError(f"{first.path} is one of {count} parts, and not named so", "restore its name")
        if tensors is not None and tensors != len(self.stored):
            raise CheckpointError(f"{first.path} should have {tensors} tensors, not {len(self.stored)}", _REPAIR)


def parts_of(path: Path) -> list[Path]:
    """All files of a split model, by llama.cpp's names; of another one the file itself. Raises CheckpointError."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a GGUF file", "name the file, or the first of its parts")
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = min(int(match["count"]), _MAX_PARTS)
    files = [path.with_name(part_name(match["stem"], number, int(match["count"]))) for number in range(count)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{len(missing)} of {count} parts are missing, such as {missing[0]}", "finish the download"
        )
    return files or [path]


def part_name(stem: str, number: int, count: int) -> str:
    """llama.cpp: llama_split_path. `number` counts from 0."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


class _Reader:
    """Walks the head. struct checks every read against the file's end; no count makes anything large."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4
        if data[:4] != MAGIC:
            raise ValueError(f"it begins with {bytes(data[:4])!r}")
        version = self._number("I")
        if version != 3:
            raise ValueError(f"GGUF version {version}, not 3")
        self._tensors, self._entries = self._count(24), self._count(12)

    def entries(self) -> tuple[dict[str, bytes], dict[str, Scalar]]:
        found: dict[str, bytes] = {}
        values: dict[str, Scalar] = {}
        for _ in range(self._entries):
            start = self._at
            key = self._string()
            kind = self._number("I")
            if kind == ARRAY:
                self._skip_list()
            else:
                values[key] = self._string() if kind == STRING else self._number(self._letter(kind))
            if self._at > _MAX_METADATA:
                raise ValueError(f"its metadata have more than {_MAX_METADATA:,} bytes")
            if key in found:
                raise ValueError(f"the key {key!r} comes twice")
            found[key] = self._data[start : self._at]
        return found, values

    def tensors(self, values: dict[str, Scalar]) -> dict[str, GgufTensor]:
        alignment = values.get("general.alignment", ALIGNMENT)
        if alignment != ALIGNMENT:
            raise ValueError(f"an alignment of {alignment!r}, not {ALIGNMENT}")
        infos = [self._tensor() for _ in range(self._tensors)]
        start = self._at + -self._at % ALIGNMENT
        result = {}
        for name, kind, shape, offset in infos:
            tensor = GgufTensor(name, kind, shape, start + offset)
            if name in result or offset % ALIGNMENT or tensor.start + tensor.bytes > len(self._data):
                raise ValueError(f"{name!r} comes twice or does not lie in the file")
            result[name] = tensor
        return result

    def _tensor(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        name = self._string()
        dimensions = self._number("I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        number, offset = self._number("I"), self._number("Q")
        kind = _BY_NUMBER.get(number)
        if kind is None:
            raise ValueError(f"{name!r} has the type {number}; known are {', '.join(TYPES)}")
        if not all(shape) or not kind.fits(shape[-1]):
            raise ValueError(f"{name!r} of {kind.name} cannot be {list(shape)}")
        return name, kind, shape, offset

    def _skip_list(self) -> None:
        kind = self._number("I")
        if kind == STRING:
            for _ in range(self._count(8)):
                self._string_at()
        else:
            size = struct.calcsize(self._letter(kind))
            self._skip(self._count(size) * size)

    def _letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"{kind} is no type of a value")
        return _SCALARS[kind]

    def _count(self, least: int) -> int:
        """How many things follow that take at least `least` bytes each: never more than the file can hold."""
        count: int = self._number("Q")
        if count * least > len(self._data) - self._at:
            raise ValueError(f"a count of {count:,} cannot be right")
        return count

    def _string(self) -> str:
        begin, end = self._string_at()
        return self._data[begin:end].decode()

    def _string_at(self) -> tuple[int, int]:
        length = self._number("Q")
        begin = self._at
        self._skip(length)
        return begin, self._at

    def _skip(self, length: int) -> None:
        if length > len(self._data) - self._at:
            raise ValueError("it ends too early")
        self._at += length

    def _number(self, letter: str) -> int:
        value: int
        (value,) = struct.unpack_from("<" + letter, self._data, self._at)
        self._at += struct.calcsize("<" + letter)
        return value
