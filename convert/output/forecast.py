"""What a conversion would write and need, known without writing a byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Resident bytes, measured on Linux: the interpreter with its libraries, before the first weight.
_GGUF_BASE, _MLX_BASE = 46_000_000, 48_000_000
#: For each byte of tokenizer.json while it is read as objects, and for each element of a slice that is in work.
_TOKENIZER_FACTOR, _SLICE_BYTES = 6.5, 9


@dataclass(frozen=True)
class Forecast:
    """What a conversion would write: the weight `files` by name in bytes, and the number of `tensors` by type.

    `memory` estimates the largest number of resident bytes.
    """

    path: str
    quant: str
    files: Mapping[str, int]
    tensors: Mapping[str, int]
    memory: int
    notes: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def disk(self) -> int:
        """Bytes that must be free; a file to be replaced takes its space until the new one is whole."""
        return self.bytes

    def json(self) -> dict[str, Any]:
        """Return the forecast as `convert --dry-run --json` prints it."""
        return {
            "path": self.path,
            "quant": self.quant,
            "bytes": self.bytes,
            "disk_bytes": self.disk,
            "memory_bytes": self.memory,
            "files": dict(self.files),
            "tensors": dict(self.tensors),
            "notes": list(self.notes),
        }


def counted(types: Iterable[str]) -> dict[str, int]:
    """Return how often each type occurs, in the order in which the types first occur."""
    names = list(types)
    return {name: names.count(name) for name in dict.fromkeys(names)}


def gguf_memory(slice_elements: int, threads: int, tokenizer_bytes: int) -> int:
    """Return the estimated bytes of a conversion to GGUF: each thread works on a slice, and two wait to be written."""
    return _GGUF_BASE + (threads + 2) * slice_elements * _SLICE_BYTES + int(_TOKENIZER_FACTOR * tokenizer_bytes)


def mlx_memory(slice_elements: int, waiting_bytes: int, tokenizer_bytes: int) -> int:
    """Return the estimated bytes of a conversion to MLX.

    `waiting_bytes` of scales wait until the packed numbers of their weight are written.
    """
    return _MLX_BASE + slice_elements * _SLICE_BYTES + waiting_bytes + int(_TOKENIZER_FACTOR * tokenizer_bytes)
