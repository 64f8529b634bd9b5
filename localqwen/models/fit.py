"""Does a model fit: the bytes of weights, of keys and values and of computing, against this machine's memory.

The prediction is checked against processes of the real dimensions by benchmarks/fit.py; its table is benchmarks/fit.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localqwen.errors import LocalqwenError, NotEnoughMemory, Unsupported, UsageError
from localqwen.formats import model_header, yarn
from localqwen.formats.model_header import ModelHeader
from localqwen.machine import Machine
from localqwen.models import registry
from localqwen.models.local_files import LocalFile
from localqwen.models.registry import Model

#: Python, llama.cpp and the vocabulary: about 65 MB were measured without the merges of a real
#: tokenizer, see benchmarks/fit.md.
OVERHEAD_BYTES = 70 << 20
#: Tokens per pass at the most. Attention scores of 256 tokens stay closer to the processor than those of 512.
BATCH = 256
#: Bytes of attention scores up to which the llama.cpp engine computes them as they are, instead of flash attention.
SCORES_BYTES = 1 << 30
#: Activations of one pass in 32 bit: a few of the model's width and of the feed-forward layer's.
COMPUTE_BYTES_PER_WIDTH = BATCH * 4 * 16
SMALLEST_DEFAULT_CONTEXT = 4096
#: The keys and values of the default context take at most one part in so many of the available memory: other programs
#: keep theirs, and loading stays quick, because llama.cpp clears these bytes.
DEFAULT_KV_SHARE = 8
#: Bytes per element of keys and values: 32 elements of q8_0 take 34 bytes, of q4_0 18.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
KV_TYPE_OF_BITS = {None: "f16", 8: "q8_0", 4: "q4_0"}
#: The share of the machine's memory that a model may take; the system and other programs need the rest.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Need:
    """The bytes that a process with a model and its context takes."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


def model_need(model: Model, quant: str, context_length: int, kv: str = "f16") -> Need:
    """Return what an entry needs in one of its GGUF quantizations, whether its file is on this disk or not."""
    return _need(model.gguf_bytes(quant), model.kv_elements_per_token, model.width, model.heads, context_length, kv)


def header_need(header: ModelHeader, context_length: int, kv: str = "f16") -> Need:
    return _need(header.bytes, header.kv_elements_per_token, header.width, header.heads, context_length, kv)


def _need(weights: int, kv_elements: int, width: int, heads: int, context_length: int, kv: str) -> Need:
    """`weights` are the bytes on disk, because they are mapped as they are."""
    scores = scores_bytes(context_length, heads) if kv == "f16" else 0  # quantized values need flash attention
    compute = OVERHEAD_BYTES + COMPUTE_BYTES_PER_WIDTH * width + scores
    return Need(weights, int(context_length * kv_elements * KV_BYTES[kv]), compute)


def scores_bytes(context_length: int, heads: int) -> int:
    """Return the bytes of the attention scores of one pass in 32 bit; 0 where flash attention avoids them."""
    scores = 4 * context_length * BATCH * heads
    return scores if scores <= SCORES_BYTES else 0


def kv_type(bits: int | None) -> str:
    """Return the type of keys and values that `--kv-quant` names by its bits. Raises UsageError."""
    if bits not in KV_TYPE_OF_BITS:
        raise UsageError(f"keys and values cannot be kept in {bits} bits", "--kv-quant 8 or 4; without it, 16")
    return KV_TYPE_OF_BITS[bits]


def needed_bytes(header: ModelHeader, context_length: int, kv: str = "f16") -> int:
    return header_need(header, context_length, kv).total


def check(header: ModelHeader, context_length: int, machine: Machine, kv: str = "f16", *, max_runs: int = 1) -> None:
    """Raise NotEnoughMemory if the model needs more than the whole machine has; the hint is the largest that fits.

    `context_length` is that of each of `max_runs`, in tokens.
    """
    needed = needed_bytes(header, context_length * max_runs, kv)
    if needed > machine.memory:
        raise NotEnoughMemory(
            f"{header.path.name} with a context of {context_length:,} tokens"
            f"{f' for each of {max_runs} runs' if max_runs > 1 else ''} needs about {needed / 1e9:.1f} GB, "
            f"this machine has {machine.memory / 1e9:.1f} GB",
            _instead(header, machine, kv, max_runs),
        )


def granted_context(
    header: ModelHeader, requested: int | None, machine: Machine, *, max_runs: int, kv: str, force: bool
) -> int:
    """Return the tokens per run: the requested ones, or else as many as memory affords.

    Raises UsageError for more than the model supports, and NotEnoughMemory unless `force`.
    """
    if requested is not None:
        stretched(header, requested)
    context = requested or default_context(header, machine, max_runs, kv)
    if not force:
        check(header, context, machine, kv, max_runs=max_runs)
    return context


def stretched(header: ModelHeader, context: int) -> yarn.Scaling | None:
    """Return the scaling that a context takes beyond what the file carries. Raises UsageError if it is too long."""
    return yarn.needed(context, header.context_length, header.scaling, name=header.path.name)


def _instead(header: ModelHeader, machine: Machine, kv: str, max_runs: int) -> str:
    """Return a hint: the largest context of this model that fits, or else the largest model; and --force."""
    # From above: beyond what attention scores may take, a longer context can need less.
    longest = yarn.reach(header.context_length, header.scaling) // 1024 * 1024
    fitting = (n for n in range(longest, 0, -1024) if needed_bytes(header, n * max_runs, kv) <= machine.memory)
    if context := next(fitting, 0):
        return f"use a smaller context: --ctx {context}; --force loads it all the same"
    best = largest_choice(machine)
    smaller = f"localqwen pull {best}" if best else "use a smaller model or quantization"
    return f"{smaller}; --force loads it all the same, as slow as the disk"


def check_named(model: Model, quant: str, machine: Machine) -> None:
    """Raise NotEnoughMemory, before a download, if not even a small context would fit."""
    needed = model_need(model, quant, SMALLEST_DEFAULT_CONTEXT).total
    if needed > machine.memory:
        best = largest_choice(machine)
        raise NotEnoughMemory(
            f"{model.name} at {quant} needs about {needed / 1e9:.1f} GB, "
            f"this machine has {machine.memory / 1e9:.1f} GB",
            (f"localqwen pull {best}; " if best else "") + "--force gets it all the same",
        )


def largest_choice(machine: Machine) -> str | None:
    """Return the name of the largest hybrid that fits in its default quantization."""
    fitting = [
        model
        for model in registry.models().values()
        if model.thinking == "switch" and model.quants and _fits(model, machine)
    ]
    return max(fitting, key=lambda model: model.gguf_bytes(model.default)).name if fitting else None


def _fits(model: Model, machine: Machine) -> bool:
    return fits(model_need(model, model.default, SMALLEST_DEFAULT_CONTEXT).total, machine.memory)


def fits(needed: int, memory: int) -> bool:
    return needed <= memory * USABLE_SHARE


def preferred(family: str, machine: Machine) -> tuple[Model, str]:
    """Return what the bare name of a family means on this machine, and why.

    It is the size that the makers advise, or the largest that fits.
    """
    sizes = [m for m in registry.models().values() if m.family == family and m.thinking == "switch" and m.quants]
    if not sizes:
        raise Unsupported(f"{family} has no model that can be switched", f"name one: {family}:…")
    advised = next((model for model in sizes if model.preferred), sizes[0])
    memory = f"{machine.memory / 1e9:.1f} GB"
    if _fits(advised, machine):
        return advised, f"the size that its makers advise for laptops, and it fits the {memory} of this machine"
    fitting = [model for model in sizes if _fits(model, machine)]
    if not fitting:
        smallest = min(sizes, key=lambda model: model.gguf_bytes(model.default))
        return smallest, f"the smallest; this machine has {memory}"
    return max(fitting, key=lambda model: model.gguf_bytes(model.default)), f"the largest that fits {memory}"


def default_context(header: ModelHeader, machine: Machine, max_runs: int = 1, kv: str = "f16") -> int:
    """Return the tokens per run of a user who names none: a power of two that memory affords, or the model's whole."""
    per_token = _kv_bytes_per_token(header, kv) * max_runs
    affordable = int(machine.available_memory // DEFAULT_KV_SHARE // per_token)
    if affordable >= header.context_length:
        return header.context_length
    return min(header.context_length, max(SMALLEST_DEFAULT_CONTEXT, (1 << affordable.bit_length()) // 2))


def _kv_bytes_per_token(header: ModelHeader, kv: str) -> float:
    return header.kv_elements_per_token * KV_BYTES[kv]


def largest_that_fits(files: Sequence[LocalFile], machine: Machine) -> LocalFile | None:
    """Return the largest model that runs here with a small context. Files that are no readable models are skipped."""
    for file in sorted(files, key=lambda file: -file.bytes):
        try:
            needed = needed_bytes(model_header.read(file.path), SMALLEST_DEFAULT_CONTEXT)
        except LocalqwenError:
            continue
        if needed <= machine.available_memory:
            return file
    return None
