"""Which model suits a machine: the largest that fits with a useful context and answers fast enough to be used.

Decoding reads every weight that a token passes through once, so its speed is bounded by memory bandwidth. That is
measured here by copying memory, and the estimate is that bound times the share of it that engines reach.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from localqwen.errors import NotEnoughMemory, UsageError
from localqwen.machine import Machine
from localqwen.models import fit, registry
from localqwen.models.registry import Model

#: Of the bandwidth of a plain copy that decoding reaches: see benchmarks/fit.md.
DECODE_SHARE = 0.5
#: Slower than somebody reads is not worth it while there is a smaller model.
READING_TOKENS_PER_SECOND = 5.0
CONTEXTS = (32768, 16384, 8192, 4096)
_MEASURED_BYTES = 256 << 20


@dataclass(frozen=True)
class Device:
    """A class of machines in round numbers: `memory` bytes for the model, `bandwidth` bytes per second (0: measure)."""

    name: str
    memory: int
    bandwidth: float


#: A phone leaves an app about half of 8 to 12 GB and has LPDDR5; a car's computer and a laptop have more of both.
DEVICES = {
    "phone": Device("phone", 5 * 10**9, 30e9),
    "car": Device("car", 10 * 10**9, 60e9),
    "laptop": Device("laptop", 12 * 10**9, 60e9),
}


@dataclass(frozen=True)
class Advice:
    """A model and how to run it there; `tokens_per_second` is an estimate, `needed` is in bytes."""

    model: Model
    quant: str
    context_length: int
    needed: int
    tokens_per_second: float

    @property
    def name(self) -> str:
        plain = self.quant == self.model.default
        return self.model.name if plain else f"{self.model.name}-{self.quant.lower()}"


def measured_bandwidth() -> float:
    """Return the bytes per second that one thread copies of a large array, best of three. Takes a quarter second."""
    import numpy

    source = numpy.ones(_MEASURED_BYTES, dtype=numpy.uint8)
    target = numpy.empty_like(source)
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        numpy.copyto(target, source)
        best = max(best, 2 * _MEASURED_BYTES / (time.perf_counter() - began))  # read once, written once
    return best


def device(name: str | None, memory: int | None, machine: Machine) -> Device:
    """Return a class of device, this machine, or either with another memory. Raise UsageError."""
    if name is not None and name not in DEVICES:
        raise UsageError(f"there is no device {name!r}", f"devices: {', '.join(DEVICES)}")
    found = DEVICES[name] if name else Device("this machine", int(machine.memory * fit.USABLE_SHARE), 0)
    bandwidth = found.bandwidth or measured_bandwidth()
    return Device(found.name, int(memory * fit.USABLE_SHARE) if memory else found.memory, bandwidth)


def advise(where: Device) -> list[Advice]:
    """Return what fits there, the best first: those faster than reading before those that are not, then the largest.

    Raise NotEnoughMemory where nothing fits.
    """
    candidates = [model for model in registry.models().values() if model.thinking == "switch" and model.quants]
    fitting = [advice for model in candidates if (advice := _best(model, where)) is not None]
    if not fitting:
        smallest = min(candidates, key=lambda model: model.gguf_bytes(model.quants[0]))
        needed = fit.model_need(smallest, smallest.quants[0], CONTEXTS[-1]).total
        raise NotEnoughMemory(
            f"nothing fits {where.memory / 1e9:.1f} GB: "
            f"{smallest.name} at {smallest.quants[0]} needs {needed / 1e9:.1f} GB",
            f"localqwen recommend --memory {needed / fit.USABLE_SHARE / 1e9:.1f}GB",
        )
    fast = READING_TOKENS_PER_SECOND
    return sorted(fitting, key=lambda a: (a.tokens_per_second < fast, -min(a.tokens_per_second, fast), -_worth(a)))


def _worth(advice: Advice) -> float:
    """Return parameters as a dense model would have them. A mixture of experts knows more than what a token passes
    through, and less than a dense model of its size: the geometric mean of both is the usual rule of thumb."""
    return float((advice.model.parameters * advice.model.active) ** 0.5)


def _best(model: Model, where: Device) -> Advice | None:
    """Return the default quantization, or the next smaller one, with the longest context that fits."""
    smaller = [quant for quant in reversed(model.quants) if model.gguf_bytes(quant) <= model.gguf_bytes(model.default)]
    for quant in smaller:
        for context in CONTEXTS:
            needed = fit.model_need(model, quant, context).total
            if needed <= where.memory:
                return Advice(model, quant, context, needed, speed(model, quant, where.bandwidth))
    return None


def speed(model: Model, quant: str, bandwidth: float) -> float:
    """Estimate the tokens per second of one answer: bandwidth by the bytes of weights that a token passes through."""
    active = model.gguf_bytes(quant) * model.active / model.parameters
    return bandwidth * DECODE_SHARE / active
