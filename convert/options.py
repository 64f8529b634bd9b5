"""The values that a conversion takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """How far a conversion is after a slice of `tensor`. Both numbers count bytes of weights read from the source."""

    tensor: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """A finished conversion: the file or folder at `path`, `bytes` of all its files, how many `tensors` they hold.

    `left_whole` names the matrices that stay unquantized because MLX's groups do not divide their rows, as in mlx-lm.
    `notes` are sentences that a user should read.
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
    """Changes that a user makes to a conversion.

    `tensor_types` (PATTERN=TYPE texts), `imatrix` (a file) and `part_bytes` (at most so many bytes of tensors in each
    file) are for GGUF. `yarn` (factor 2 or 4) and `adapter` (a folder in PEFT's layout) need a checkpoint as source.
    """

    tensor_types: tuple[str, ...] = ()
    imatrix: Path | None = None
    part_bytes: int | None = None
    yarn: int | None = None
    adapter: Path | None = None

    def changed(self) -> dict[str, object]:
        """Return the options that differ from their defaults, as a manifest records them."""
        values: dict[str, object] = {
            "tensor_types": list(self.tensor_types),
            "imatrix": self.imatrix and self.imatrix.name,
            "part_bytes": self.part_bytes,
            "yarn": self.yarn,
            "adapter": self.adapter and str(self.adapter),
        }
        return {name: value for name, value in values.items() if value}


DEFAULTS = Options()
