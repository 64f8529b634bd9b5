"""Conversions to MLX: open the checkpoint, apply the options, plan, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.mlx import files, schemes
from convert.mlx.arrays import SLICE
from convert.mlx.planning import Plan, make_plan
from convert.mlx.schemes import Scheme
from convert.options import DEFAULTS, Options, Progress, Report
from convert.output import folder as output_folder
from convert.output import forecast
from convert.output.forecast import Forecast
from convert.output.shards import header
from convert.sources import adapters
from convert.sources.checkpoint import Checkpoint
from localqwen.errors import CheckpointError, OutputError, UsageError


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
    options: Options = DEFAULTS,
) -> Report:
    """Convert the checkpoint folder `source` to the MLX folder `out`, in 16 bit without bits, mode and recipe.

    `group_size` defaults to 64 columns. With `force` a folder that an earlier conversion wrote is replaced. Raise
    UsageError, CheckpointError, OutputError, ConversionError or EngineUnavailable; then nothing is left at `out` or
    beside it.
    """
    started = time.monotonic()
    scheme = schemes.scheme(bits, group_size, mode, recipe)
    out = out if out.name not in ("", "..") else out.resolve()
    output_folder.check(out, force=force)
    with _opened(source, scheme, options) as (checkpoint, plan):
        if out.exists() and source.resolve().is_relative_to(out.resolve()):
            raise OutputError(f"{out} holds the checkpoint that is read", "choose another folder for the output")
        written = files.write(checkpoint, plan, out, force=force, progress=progress, changed=options.changed())
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
    options: Options = DEFAULTS,
) -> Forecast:
    """Return what `convert_to_mlx` would write and need. Sizes are those of the weight files, headers included."""
    scheme = schemes.scheme(bits, group_size, mode, recipe)
    with _opened(source, scheme, options) as (checkpoint, plan):
        sizes = {
            name: len(header(tensors)) + sum(tensor.bytes for tensor in tensors)
            for name, tensors in plan.shards.items()
        }
        waiting = max(sum(tensor.bytes for tensor in each.stored[1:]) for each in plan.weights)
        memory = forecast.mlx_memory(SLICE, waiting, (checkpoint.folder / "tokenizer.json").stat().st_size)
        notes = checkpoint.notes + tuple(f"left unquantized: {path}" for path in plan.left_whole)
        kinds = forecast.counted(each.kind for each in plan.weights)
        return Forecast(str(out), scheme.name, sizes, kinds, memory, notes)


@contextmanager
def _opened(source: Path, scheme: Scheme, options: Options) -> Iterator[tuple[Checkpoint, Plan]]:
    """Open the checkpoint, with its plan, for the body. Raise UsageError, CheckpointError or ConversionError."""
    if options.tensor_types or options.imatrix or options.part_bytes:
        raise UsageError("types of single tensors, importance matrices and parts are for GGUF", "--to gguf")
    if source.suffix == ".gguf" and source.is_file():
        raise CheckpointError(f"{source} is a GGUF file, MLX needs a checkpoint folder", "give the official checkpoint")
    with Checkpoint(source) as checkpoint:
        checkpoint.stretch(options.yarn)
        adapters.apply(checkpoint, options.adapter)
        yield checkpoint, make_plan(checkpoint, scheme)
