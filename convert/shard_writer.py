"""A safetensors file written as its tensors come: their sizes are known beforehand, so the header goes first.

Knows nothing of where the numbers come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convert.hashing import Digest, HashedWriter
from convert.mlx_layout import Stored
from localqwen.errors import OutputError
from localqwen.machine.posix import sync_file


class ShardWriter:
    """The new file `path` with `tensors`, whose pieces come in that order. Use with `with`, then `finish`."""

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
        return not self._waiting

    def write(self, name: str, data: memoryview) -> None:
        """The next piece of the tensor `name`.

        Raises OutputError unless each tensor gets exactly the bytes that were planned for it.
        """
        if self.is_full or name != self._waiting[-1].name or data.nbytes > self._room:
            raise OutputError(f"{data.nbytes:,} bytes of {name} came where {self._planned()} planned", "convert again")
        self._writer.write(data)
        self._room -= data.nbytes
        if not self._room:
            self._waiting.pop()
            self._room = self._waiting[-1].bytes if self._waiting else 0

    def finish(self) -> Digest:
        """Makes the file last through a power cut. Raises OutputError if something is missing in it."""
        if not self.is_full:
            raise OutputError(f"{self._path.name} ends where {self._planned()} planned", "convert again")
        sync_file(self._file.fileno())
        return self._writer.digest()

    def _planned(self) -> str:
        return "nothing is" if self.is_full else f"{self._room:,} bytes of {self._waiting[-1].name} are"


def header(tensors: Sequence[Stored], made_for: str = "mlx") -> bytes:
    """Everything before the data, padded to whole eight bytes as the format's own library does."""
    entries: dict[str, Any] = {"__metadata__": {"format": made_for}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
