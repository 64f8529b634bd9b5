"""Everything that can be named, with what it costs: one row per model and quantization."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from localqwen.machine import Machine
from localqwen.models import fit, registry
from localqwen.models.names import Named
from localqwen.models.registry import Model

CONTEXT_LENGTH = 4096


@dataclass(frozen=True)
class Row:
    """One model in one quantization. `download_bytes` come over the network, `bytes` lie on the disk afterwards, memory
    is that at a context of 4,096 tokens. Without an `official` file the weights are loaded and converted."""

    name: str
    quant: str
    default: bool
    official: bool
    bytes: int
    download_bytes: int
    memory_bytes: int
    fits: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rows(machine: Machine) -> list[Row]:
    return [row for model in registry.models().values() for row in _rows(model, machine)]


def _rows(model: Model, machine: Machine) -> Iterator[Row]:
    for quant in model.quants:
        needed = fit.model_need(model, quant, CONTEXT_LENGTH).total
        yield Row(
            name=Named(model, quant).text,
            quant=quant,
            default=quant == model.default,
            official=quant in model.gguf,
            bytes=model.gguf_bytes(quant),
            download_bytes=model.download_bytes(quant),
            memory_bytes=needed,
            fits=fit.fits(needed, machine.memory),
        )
