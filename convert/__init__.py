"""Official Qwen3 checkpoints become files that run here.

`convert(folder, out, quant="q4_k_m")` writes a GGUF file, `convert_to_mlx(folder, out, bits=4)` an MLX folder.
One pass: each tensor is read by memory map, quantised by llama.cpp's or MLX's own code and written, in slices of rows,
so that memory does not grow with the model and no intermediate file is needed. Each result has a manifest: sources,
recipe, versions, digests.

    safetensors.py   one weight file, its header read strictly
    checkpoint.py    the folder: JSON files and shards
    config.py        config.json as numbers, read strictly
    qwen3.py         the architecture: tensors, names, keys
    tokenizer.py     tokenizer.json -> tokenizer keys
    tensor_types.py  the types of ggml
    quants.py        the kinds of file, and which type each tensor gets
    gguf_file.py     the head of a GGUF file as bytes
    planning.py      all of it together: what will be written, to the byte
    ggml.py          llama.cpp's quantiser
    encode.py        weights -> bytes, on several threads
    target.py        the output file, whole or not at all
    mlx_schemes.py   the quantisations of MLX, and which weight each of them packs how
    mlx_layout.py    tensors, names, shards and config of an MLX folder
    mlx_planning.py  all of it together
    mlx.py           MLX's quantiser, and the writing of the folder
    shard_writer.py  a safetensors file, written as its tensors come
    target_folder.py the output folder, whole or not at all
    hashing.py       sha256 of what is read and written, beside the work
    manifest.py      what a result was made of, how, and by what

Of localqwen it imports `errors`, `machine` and the version alone. All failures are `localqwen.errors.ConversionError`s
with a hint, EngineUnavailable where llama.cpp or MLX is missing, UsageError for a quantisation that MLX does not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from convert import mlx_schemes, quants
from localqwen.errors import OutputError

if TYPE_CHECKING:
    from convert.checkpoint import Checkpoint
    from convert.hashing import Digest
    from convert.planning import Plan

__all__ = ["OWNER", "QUANTIZATIONS", "Progress", "Report", "convert", "convert_to_mlx", "plan"]

#: Tells this package from another one named `convert` that stands before it on the path.
OWNER = "localqwen"
QUANTIZATIONS: tuple[str, ...] = tuple(quants.QUANTIZATIONS)
#: The files beside the weights that a GGUF file takes something from.
_READ_FOR_GGUF = (
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Progress:
    """Reported after each slice of a tensor; both numbers count bytes of weights read from the checkpoint."""

    tensor: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """The file or folder that was written: bytes of all its files, how many tensors they hold, what it took.

    `left_whole` are the matrices that MLX's groups do not divide: they stay unquantised, as in mlx-lm.
    """

    path: Path
    bytes: int
    tensors: int
    quant: str
    seconds: float
    left_whole: tuple[str, ...] = ()


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
    from convert import manifest, target
    from convert.checkpoint import Checkpoint
    from convert.hashing import InputHashes
    from convert.planning import make_plan

    started = time.monotonic()
    recipe = quants.Recipe(quants.quantization(quant))
    target.check(out, force=force)
    with Checkpoint(source) as checkpoint:
        if out.exists() and any(out.samefile(file) for file in checkpoint.weight_files):
            raise OutputError(f"{out} is part of the checkpoint that is read", "choose another file for the output")
        plan = make_plan(checkpoint, recipe, name or source.resolve().name)
        target.check_space(out, plan.size)
        with InputHashes(checkpoint.files(_READ_FOR_GGUF)) as hashes:
            with target.writing(out, size=plan.size, force=force) as file:
                digest = _write(file, plan, checkpoint, threads, progress)
                inputs = hashes.result()
                manifest.file_of(out).unlink(missing_ok=True)  # it describes what is about to be replaced
            manifest.write(manifest.file_of(out), _manifest_of(source, plan, inputs, {out.name: digest}))
    return Report(out, plan.size, len(plan.tensors), plan.quant, time.monotonic() - started)


def plan(source: Path, quant: str, *, name: str | None = None) -> Plan:
    """What `convert` would write, without writing it: size to the byte, tensors with their types."""
    from convert.checkpoint import Checkpoint
    from convert.planning import make_plan

    with Checkpoint(source) as checkpoint:
        return make_plan(checkpoint, quants.Recipe(quants.quantization(quant)), name or source.resolve().name)


def convert_to_mlx(
    source: Path,
    out: Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    recipe: str | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Writes the checkpoint folder `source` as the MLX folder `out`; without bits, mode and recipe in 16 bit.

    Groups have 64 columns unless said. With `force` it replaces a folder that a conversion has made. Raises UsageError,
    CheckpointError, OutputError, ConversionError, EngineUnavailable; then nothing is left under or beside `out`.
    """
    from convert import mlx, target_folder
    from convert.checkpoint import Checkpoint
    from convert.mlx_planning import make_plan

    started = time.monotonic()
    scheme = mlx_schemes.scheme(bits, group_size, mode, recipe)
    out = out if out.name not in ("", "..") else out.resolve()
    target_folder.check(out, force=force)
    with Checkpoint(source) as checkpoint:
        if out.exists() and source.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out} holds the checkpoint that is read", "choose another folder for the output")
        plan = make_plan(checkpoint, scheme)
        written = mlx.write(checkpoint, plan, out, force=force, progress=progress)
    size, tensors = sum(digest.bytes for digest in written.values()), sum(map(len, plan.shards.values()))
    return Report(out, size, tensors, scheme.name, time.monotonic() - started, plan.left_whole)


def _manifest_of(source: Path, plan: Plan, inputs: dict[str, Digest], outputs: dict[str, Digest]) -> dict[str, object]:
    from convert import manifest

    recipe = {"format": "gguf", "quant": plan.quant}
    packages = ("llama-cpp-python", "gguf")
    return manifest.make(source, recipe=recipe, inputs=inputs, outputs=outputs, packages=packages)


def _write(
    file: BinaryIO,
    plan: Plan,
    checkpoint: Checkpoint,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
) -> Digest:
    from convert.encode import encoded
    from convert.gguf_file import padding
    from convert.hashing import HashedWriter
    from localqwen.machine import usable_cores

    threads = threads or usable_cores()
    tensors = checkpoint.tensors
    total = sum(tensors[source].bytes for tensor in plan.tensors for source in tensor.sources)
    done = 0
    with ThreadPoolExecutor(threads, "convert") as pool, HashedWriter(file) as writer:
        writer.write(memoryview(plan.head))
        for tensor in plan.tensors:
            parts = [(checkpoint.file_of(source), tensors[source]) for source in tensor.sources]
            for data, source_bytes in encoded(parts, tensor.stored.type, pool, ahead=threads + 2):
                writer.write(data.data)
                done += source_bytes
                if progress is not None:
                    progress(Progress(tensor.stored.name, done, total))
            writer.write(memoryview(bytes(padding(tensor.stored.size))))
        return writer.digest()
