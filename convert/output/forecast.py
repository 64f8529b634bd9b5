"""What a conversion would write, and what it needs, without a byte being written."""

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
    """`files` are the names and sizes in bytes of the weight files; `tensors` counts those of each type.

    `bytes` is the sum of `files`; `memory` is an estimate of the resident bytes at most, `disk` what must be free: a
    file that is replaced goes only when the new one is whole.
    """

    path: str
    quant: str
    files: Mapping[str, int]
    tensors: Mapping[str, int]
    memory: int
    notes: tuple[str, ...] = field(default=())

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def disk(self) -> int:
        return self.bytes

    def json(self) -> dict[str, Any]:
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
    """How often each type comes, in the order in which they first come."""
    names = list(types)
    return {name: names.count(name) for name in dict.fromkeys(names)}


def gguf_memory(slice_elements: int, threads: int, tokenizer_bytes: int) -> int:
    """Each thread has a slice in work, and two wait to be written."""
    return _GGUF_BASE + (threads + 2) * slice_elements * _SLICE_BYTES + int(_TOKENIZER_FACTOR * tokenizer_bytes)


def mlx_memory(slice_elements: int, waiting_bytes: int, tokenizer_bytes: int) -> int:
    """`waiting_bytes` of scales wait until the packed numbers of their weight are written."""
    return _MLX_BASE + slice_elements * _SLICE_BYTES + waiting_bytes + int(_TOKENIZER_FACTOR * tokenizer_bytes)
