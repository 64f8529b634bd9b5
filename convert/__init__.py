"""Official Qwen3 checkpoints become files that run here.

`convert(folder, out, quant="q4_k_m")` writes a GGUF file, `convert_to_mlx(folder, out, bits=4)` an MLX folder.
One pass: each tensor is read by memory map, quantised by llama.cpp's or MLX's own code and written, in slices of rows,
so that memory does not grow with the model and no intermediate file is needed. Each result has a manifest: sources,
recipe, versions, digests.

    checkpoint.py    the folder: JSON files and shards
    config.py        config.json as numbers, read strictly
    storage.py       how official quantised weights are stored, and what numbers they stand for
    yarn.py          a longer context, before anything reads the config
    adapters.py      LoRA adapters, merged while the weights are read
    adapter_files.py LoRA adapters as files for the engines
    qwen3.py         the architecture: tensors, names, keys
    tokenizer.py     tokenizer.json -> tokenizer keys
    quants.py        the kinds of file, and which type each tensor gets
    gguf_file.py     the head of a GGUF file as bytes
    gguf_source.py   an existing GGUF file, read strictly
    requantising.py  what becomes of it
    imatrix.py       importance matrices, read
    activations.py   importance matrices, measured: a model reads a text
    planning.py      all of it together: what will be written, to the byte
    forecast.py      that, and what it needs, for people
    gguf.py          GGUF files: source, plan, writing
    ggml.py          llama.cpp's quantiser
    encode.py        weights -> bytes, on several threads
    target.py        the output file, whole or not at all
    mlx_schemes.py   the quantisations of MLX, and which weight each of them packs how
    mlx_layout.py    tensors, names, shards and config of an MLX folder
    mlx_planning.py  all of it together
    mlx.py           MLX's quantiser, and the writing of the folder
    mlx_storage.py   how an MLX folder stores its weights
    official.py      the official layout in 16 bit, for tools that need it
    shard_writer.py  a safetensors file, written as its tensors come
    target_folder.py the output folder, whole or not at all
    hashing.py       sha256 of what is read and written, beside the work
    manifest.py      what a result was made of, how, and by what

Of localqwen it imports `errors`, `machine` and the version alone. All failures are `localqwen.errors.ConversionError`s
with a hint, EngineUnavailable where llama.cpp or MLX is missing, UsageError for a quantisation that MLX does not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert import mlx_schemes, quants
from localqwen.errors import OutputError

if TYPE_CHECKING:
    from convert.forecast import Forecast
    from convert.planning import Plan

__all__ = [
    "OWNER",
    "QUANTIZATIONS",
    "Options",
    "Progress",
    "Report",
    "adapter_for_llama_cpp",
    "adapter_for_mlx",
    "convert",
    "convert_to_mlx",
    "dequantise",
    "forecast_gguf",
    "forecast_mlx",
    "merge",
    "plan",
]

#: Tells this package from another one named `convert` that stands before it on the path.
OWNER = "localqwen"
QUANTIZATIONS: tuple[str, ...] = tuple(quants.QUANTIZATIONS)


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


def convert(
    source: Path,
    out: Path,
    *,
    quant: str,
    force: bool = False,
    name: str | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    options: Options = Options(),
) -> Report:
    """Writes the checkpoint folder or GGUF file `source` as the GGUF file `out`, replacing it only with `force`.

    `name` becomes general.name (the folder's name if None); `threads` are all usable cores if None. With `part_bytes`,
    `out` gives the names of the parts. Raises UsageError, CheckpointError, OutputError, ConversionError,
    EngineUnavailable; then nothing is left under or beside `out`.
    """
    from convert import gguf, manifest, target

    started = time.monotonic()
    if options.part_bytes is None:
        target.check(out, force=force)
    with gguf.opened(source, quant, name=name, options=options, force=force) as job:
        first, inputs, outputs = gguf.write(job, out, force=force, threads=threads, progress=progress)
        recipe = {"format": "gguf", "quant": job.plan.quant, **_changed(options)}
        packages = ("llama-cpp-python", "gguf")
        written = manifest.make(source, recipe=recipe, inputs=inputs, outputs=outputs, packages=packages)
        manifest.write(manifest.file_of(first), written)
        seconds = time.monotonic() - started
        return Report(first, job.plan.size, len(job.plan.tensors), job.plan.quant, seconds, notes=job.notes)


def plan(source: Path, quant: str, *, name: str | None = None, options: Options = Options()) -> Plan:
    """What `convert` would write, without writing it: size to the byte, tensors with their types."""
    from convert import gguf

    with gguf.opened(source, quant, name=name, options=options, force=True) as job:
        return job.plan


def forecast_gguf(
    source: Path,
    out: Path,
    *,
    quant: str,
    name: str | None = None,
    force: bool = False,
    threads: int | None = None,
    options: Options = Options(),
) -> Forecast:
    """What `convert` would write and need; raises what it would raise before its first byte."""
    from convert import gguf

    with gguf.opened(source, quant, name=name, options=options, force=force) as job:
        return gguf.forecast_of(job, out, threads)


def merge(
    source: Path,
    out: Path,
    *,
    force: bool = False,
    part_bytes: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Writes the GGUF file `source`, with all its parts, as the one file `out`; or in parts of `part_bytes`.

    Raises CheckpointError, OutputError.
    """
    from convert import gguf, manifest, requantising
    from convert.gguf_source import GgufSource

    started = time.monotonic()
    with GgufSource(source) as file:
        job = gguf.Job(file, requantising.make_copy(file, part_bytes))
        first, inputs, outputs = gguf.write(job, out, force=force, threads=1, progress=progress)
        written = manifest.make(source, recipe={"format": "gguf"}, inputs=inputs, outputs=outputs, packages=())
        manifest.write(manifest.file_of(first), written)
        return Report(first, job.plan.size, len(job.plan.tensors), job.plan.quant, time.monotonic() - started)


def dequantise(
    source: Path, out: Path, *, force: bool = False, progress: Callable[[Progress], None] | None = None
) -> Report:
    """Writes the MLX folder or quantised checkpoint `source` as the folder `out` in the official layout, in 16 bit.

    Raises CheckpointError, OutputError, EngineUnavailable where MLX is needed and missing.
    """
    from convert import official, target_folder
    from convert.checkpoint import Checkpoint

    started = time.monotonic()
    out = out if out.name not in ("", "..") else out.resolve()
    target_folder.check(out, force=force)
    with Checkpoint(source, mlx=True) as checkpoint:
        written, tensors = official.write(checkpoint, out, force=force, progress=progress)
    size = sum(digest.bytes for digest in written.values())
    return Report(out, size, tensors, "16bit", time.monotonic() - started)


def adapter_for_llama_cpp(folder: Path, out: Path, *, architecture: str, sizes: Mapping[str, int]) -> None:
    """Writes the LoRA adapter in `folder`, of PEFT's layout, as the GGUF file `out` that llama.cpp applies.

    `sizes` are the model's, by GGUF's keys without the architecture. Raises CheckpointError for an adapter that is no
    plain LoRA or does not fit the model, OutputError.
    """
    from convert import adapter_files

    adapter_files.write_gguf(folder, out, architecture, sizes)


def adapter_for_mlx(folder: Path, out: Path, *, config: Mapping[str, Any]) -> None:
    """The same for the MLX engine, as the safetensors file `out`. `config` is the model's config.json."""
    from convert import adapter_files

    adapter_files.write_mlx(folder, out, config)


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
    options: Options = Options(),
) -> Report:
    """Writes the checkpoint folder `source` as the MLX folder `out`; without bits, mode and recipe in 16 bit.

    Groups have 64 columns unless said. With `force` it replaces a folder that a conversion has made. Raises UsageError,
    CheckpointError, OutputError, ConversionError, EngineUnavailable; then nothing is left under or beside `out`.
    """
    from convert import mlx, target_folder
    from convert.mlx_planning import opened

    started = time.monotonic()
    scheme = mlx_schemes.scheme(bits, group_size, mode, recipe)
    out = out if out.name not in ("", "..") else out.resolve()
    target_folder.check(out, force=force)
    with opened(source, scheme, options) as (checkpoint, plan):
        if out.exists() and source.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out} holds the checkpoint that is read", "choose another folder for the output")
        written = mlx.write(checkpoint, plan, out, force=force, progress=progress, changed=_changed(options))
        notes = checkpoint.notes
    size, seconds = sum(digest.bytes for digest in written.values()), time.monotonic() - started
    return Report(out, size, plan.tensor_count, scheme.name, seconds, plan.left_whole, notes)


def forecast_mlx(
    source: Path,
    out: Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    recipe: str | None = None,
    options: Options = Options(),
) -> Forecast:
    """What `convert_to_mlx` would write and need."""
    from convert import mlx_planning

    scheme = mlx_schemes.scheme(bits, group_size, mode, recipe)
    with mlx_planning.opened(source, scheme, options) as (checkpoint, plan):
        return mlx_planning.forecast_of(checkpoint, plan, out)


def _changed(options: Options) -> dict[str, object]:
    """For the manifest: only what was asked for."""
    values: dict[str, object] = {
        "tensor_types": list(options.tensor_types),
        "imatrix": options.imatrix and options.imatrix.name,
        "part_bytes": options.part_bytes,
        "yarn": options.yarn,
        "adapter": options.adapter and str(options.adapter),
    }
    return {name: value for name, value in values.items() if value}
