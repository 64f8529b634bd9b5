"""The weight files of an output folder: safetensors, in shards, with an index.

A file is written as its tensors come; their sizes are known before, so that the header goes first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from convert.output.hashing import Digest, HashedWriter
from localqwen.errors import OutputError
from localqwen.formats import dtypes
from localqwen.machine.posix import sync_file

#: mlx-lm's MAX_FILE_SIZE_GB, which it shifts by 30 bits.
MAX_SHARD = 5 << 30
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor of the output; `dtype` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of data."""
        return prod(self.shape) * dtypes.SAFETENSORS[self.dtype].block_bytes


class ShardWriter:
    """A new safetensors file whose tensors come in order, in pieces. Use with `with`, then call `finish`."""

    def __init__(self, path: Path, tensors: Sequence[Stored], *, made_for: str = "mlx") -> None:
        self._path = path
        self._waiting = list(reversed(tensors))
        self._room = tensors[0].bytes
        self._open = ExitStack()
        self._file = self._open.enter_context(path.open("xb", buffering=0))
        self._writer = self._open.enter_context(HashedWriter(self._file))
        self._header = header(tensors, made_for)

    def __enter__(self) -> ShardWriter:
        self._writer.write(memoryview(self._header))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def is_full(self) -> bool:
        """Whether all tensors are complete."""
        return not self._waiting

    def write(self, name: str, data: memoryview) -> None:
        """Write the next piece of the tensor `name`.

        Raise OutputError unless each tensor gets exactly the bytes that were planned for it.
        """
        if self.is_full or name != self._waiting[-1].name or data.nbytes > self._room:
            raise OutputError(f"{data.nbytes:,} bytes of {name} came where {self._planned()} planned", "convert again")
        self._writer.write(data)
        self._room -= data.nbytes
        if not self._room:
            self._waiting.pop()
            self._room = self._waiting[-1].bytes if self._waiting else 0

    def finish(self) -> Digest:
        """Make the file survive a power cut; return its digest. Raise OutputError if data are missing."""
        if not self.is_full:
            raise OutputError(f"{self._path.name} ends where {self._planned()} planned", "convert again")
        sync_file(self._file.fileno())
        return self._writer.digest()

    def _planned(self) -> str:
        return "nothing is" if self.is_full else f"{self._room:,} bytes of {self._waiting[-1].name} are"


def header(tensors: Sequence[Stored], made_for: str = "mlx") -> bytes:
    """Return the bytes before the data, padded to whole eight bytes as the format's own library does."""
    entries: dict[str, Any] = {"__metadata__": {"format": made_for}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def by_file(tensors: Sequence[Stored]) -> dict[str, list[Stored]]:
    """Return the tensors of each weight file by the file's name, in order."""
    parts = cut(tensors, MAX_SHARD)
    return dict(zip(_names(len(parts)), parts, strict=True))


def cut(tensors: Sequence[Stored], limit: int) -> list[list[Stored]]:
    """Return the tensors of each file in order; a tensor larger than `limit` bytes has a file of its own."""
    result: list[list[Stored]] = []
    room = 0
    for tensor in tensors:
        if not result or tensor.bytes > room:
            result.append([])
            room = limit
        result[-1].append(tensor)
        room -= tensor.bytes
    return result


def _names(count: int) -> list[str]:
    return [WEIGHTS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def index(files: Mapping[str, Sequence[Stored]], parameters: int) -> dict[str, Any]:
    """Return the content of model.safetensors.index.json, which mlx-lm writes for a single file too."""
    homes = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
    size = sum(tensor.bytes for tensors in files.values() for tensor in tensors)
    return {
        "metadata": {"total_size": size, "total_parameters": parameters},
        "weight_map": dict(sorted(homes.items())),
    }
