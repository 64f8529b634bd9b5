"""Does it fit: bytes of weights and of keys and values, against this machine's memory."""

from __future__ import annotations

from collections.abc import Sequence

from localqwen.errors import LocalqwenError, NotEnoughMemory
from localqwen.machine import Machine
from localqwen.models import gguf_header
from localqwen.models.gguf_header import GgufHeader
from localqwen.models.store import LocalFile

#: Compute buffers, the library and Python itself.
OVERHEAD_BYTES = 400 << 20
SMALLEST_DEFAULT_CONTEXT = 4096
#: Of the available memory that the keys and values of the default context may take: room for other programs stays, and
#: loading stays quick, because llama.cpp clears them.
DEFAULT_KV_SHARE = 8


def needed_bytes(header: GgufHeader, context_length: int) -> int:
    return header.bytes + context_length * header.kv_bytes_per_token + OVERHEAD_BYTES


def check(header: GgufHeader, context_length: int, machine: Machine) -> None:
    """Raises NotEnoughMemory where weights and keys and values are more than the whole machine has."""
    needed = needed_bytes(header, context_length)
    if needed > machine.memory:
        raise NotEnoughMemory(
            f"{header.path.name} with a context of {context_length:,} tokens needs about {needed / 1e9:.1f} GB, "
            f"this machine has {machine.memory / 1e9:.1f} GB",
            "use a smaller model or quantisation, or a smaller context: --ctx 4096",
        )


def default_context(header: GgufHeader, machine: Machine, max_runs: int = 1) -> int:
    """Tokens per run when the user names none: a power of two that memory affords easily, or the model's whole."""
    affordable = machine.available_memory // DEFAULT_KV_SHARE // (header.kv_bytes_per_token * max_runs)
    if affordable >= header.context_length:
        return header.context_length
    return min(header.context_length, max(SMALLEST_DEFAULT_CONTEXT, (1 << affordable.bit_length()) // 2))


def largest_that_fits(files: Sequence[LocalFile], machine: Machine) -> LocalFile | None:
    """The largest model that runs here with a small context; files that are not readable models are passed over."""
    for file in sorted(files, key=lambda file: -file.bytes):
        try:
            needed = needed_bytes(gguf_header.read(file.path), SMALLEST_DEFAULT_CONTEXT)
        except LocalqwenError:
            continue
        if needed <= machine.available_memory:
            return file
    return None
