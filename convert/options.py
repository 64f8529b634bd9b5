"""The values that every conversion takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """Reported after each slice of a tensor; both numbers count bytes of weights read from the source."""

    tensor: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """The file or folder that was written: bytes of all its files, how many tensors they hold, what it took.

    `left_whole` are the matrices that MLX's groups do not divide: they stay unquantised, as in mlx-lm. `notes` are what
    a user should know of the result.
    """

    path: Path
    bytes: int
    tensors: int
    quant: str
    seconds: float
    left_whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What a user changes on the way. `tensor_types` are PATTERN=TYPE texts, `part_bytes` limits the tensors of a file.

    `tensor_types`, `imatrix` and `part_bytes` are for GGUF; `yarn` (2 or 4) and `adapter` (a folder of PEFT's layout)
    need a checkpoint.
    """

    tensor_types: tuple[str, ...] = ()
    imatrix: Path | None = None
    part_bytes: int | None = None
    yarn: int | None = None
    adapter: Path | None = None


#: No changes.
DEFAULTS = Options()
