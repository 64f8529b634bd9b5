"""Official Qwen3 checkpoints become files that run here: `convert(folder, out, quant="q4_k_m")` writes a GGUF file.

One pass: each tensor is read by memory map, quantised by llama.cpp's own code and written, in slices of rows, so that
memory does not grow with the model and no intermediate file is needed.

    safetensors.py   one weight file, its header read strictly
    checkpoint.py    the folder: JSON files and shards
    config.py        config.json as numbers, read strictly
    qwen3.py         the architecture: tensors, names, keys
    tokenizer.py     tokenizer.json -> tokenizer keys
    quants.py        the kinds of file, and which type each tensor gets
    gguf_file.py     the head of a GGUF file as bytes
    planning.py      all of it together: what will be written, to the byte
    ggml.py          llama.cpp's quantiser
    encode.py        weights -> bytes, on several threads
    target.py        the output file, whole or not at all

Of localqwen it imports `errors` and `machine` alone. All failures are `localqwen.errors.ConversionError`s with a hint,
or EngineUnavailable where llama.cpp is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from convert import quants
from localqwen.errors import ConversionError, OutputError

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.planning import Plan

__all__ = ["OWNER", "QUANTIZATIONS", "Progress", "Report", "convert", "plan"]

#: Tells this package from another one named `convert` that stands before it on the path.
OWNER = "localqwen"
QUANTIZATIONS: tuple[str, ...] = tuple(quants.QUANTIZATIONS)


@dataclass(frozen=True)
class Progress:
    """Reported after each slice of a tensor; both numbers count bytes of weights read from the checkpoint."""

    tensor: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """The file that was written: its size in bytes, how many tensors it has, what it took."""

    path: Path
    bytes: int
    tensors: int
    quant: str
    seconds: float


def convert(
    source: Path,
    out: Path,
    *,
    quant: str,
    force: bool = False,
    name: str | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Writes the checkpoint folder `source` as the GGUF file `out`, replacing it only with `force`.

    `name` becomes general.name (the folder's name if None); `threads` are all usable cores if None. Raises
    CheckpointError, OutputError, ConversionError, EngineUnavailable; then nothing is left under or beside `out`.
    """
    from convert import target
    from convert.checkpoint import Checkpoint
    from convert.planning import make_plan

    started = time.monotonic()
    quantization = _quantization(quant)
    target.check(out, force=force)
    with Checkpoint(source) as checkpoint:
        if out.exists() and any(out.samefile(file) for file in checkpoint.weight_files):
            raise OutputError(f"{out} is part of the checkpoint that is read", "choose another file for the output")
        plan = make_plan(checkpoint, quantization, name or source.resolve().name)
        target.check_space(out, plan.size)
        with target.writing(out, size=plan.size, force=force) as file:
            _write(file, plan, checkpoint, threads, progress)
    return Report(out, plan.size, len(plan.tensors), plan.quant, time.monotonic() - started)


def plan(source: Path, quant: str, *, name: str | None = None) -> Plan:
    """What `convert` would write, without writing it: size to the byte, tensors with their types."""
    from convert.checkpoint import Checkpoint
    from convert.planning import make_plan

    with Checkpoint(source) as checkpoint:
        return make_plan(checkpoint, _quantization(quant), name or source.resolve().name)


def _quantization(quant: str) -> quants.Quantization:
    try:
        return quants.QUANTIZATIONS[quant.lower()]
    except KeyError:
        raise ConversionError(f"unknown quantisation {quant!r}", f"known are {', '.join(QUANTIZATIONS)}") from None


def _write(
    file: BinaryIO,
    plan: Plan,
    checkpoint: Checkpoint,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
) -> None:
    from convert import target
    from convert.encode import encoded
    from convert.gguf_file import padding
    from localqwen.machine import usable_cores

    threads = threads or usable_cores()
    tensors = checkpoint.tensors
    total = sum(tensors[source].bytes for tensor in plan.tensors for source in tensor.sources)
    done = 0
    target.write(file, memoryview(plan.head))
    with ThreadPoolExecutor(threads, "convert") as pool:
        for tensor in plan.tensors:
            parts = [(checkpoint.file_of(source), tensors[source]) for source in tensor.sources]
            for data, source_bytes in encoded(parts, tensor.stored.type, pool, ahead=threads + 2):
                target.write(file, data.data)
                done += source_bytes
                if progress is not None:
                    progress(Progress(tensor.stored.name, done, total))
            target.write(file, memoryview(bytes(padding(tensor.stored.size))))
