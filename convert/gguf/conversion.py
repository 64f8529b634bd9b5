"""Conversions to GGUF, from a checkpoint folder or a GGUF file: open, apply the options, plan, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.gguf import encoding, files, planning, quants, requantizing
from convert.gguf.files import Job
from convert.gguf.planning import Plan
from convert.gguf.quants import Recipe
from convert.imatrix import file as imatrix_file
from convert.options import DEFAULTS, Options, Progress, Report
from convert.output import file as output_file
from convert.output import forecast
from convert.output.forecast import Forecast
from convert.sources import adapters
from convert.sources.checkpoint import Checkpoint
from convert.sources.gguf import GgufSource
from localqwen.errors import CheckpointError, UsageError
from localqwen.formats.gguf_reader import MAGIC
from localqwen.machine import usable_cores


def convert(
    source: Path,
    out: Path,
    *,
    quant: str,
    force: bool = False,
    name: str | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    options: Options = DEFAULTS,
) -> Report:
    """Convert `source`, a checkpoint folder or a GGUF file, to the GGUF file `out`; replace `out` only with `force`.

    `name` becomes general.name (the folder's name if None). `threads` defaults to all usable cores. With
    `options.part_bytes` the parts are named after `out`. Raise UsageError, CheckpointError, OutputError,
    ConversionError or EngineUnavailable; then nothing is left at `out` or beside it.
    """
    started = time.monotonic()
    if options.part_bytes is None:
        output_file.check(out, force=force)
    with _opened(source, quant, name=name, options=options, force=force) as job:
        recipe = {"format": "gguf", "quant": job.plan.quant, **options.changed()}
        packages = ("llama-cpp-python", "gguf")
        first = files.write(
            job, source, out, force=force, threads=threads, progress=progress, recipe=recipe, packages=packages
        )
        return _report(job, first, started)


def plan(source: Path, quant: str, *, name: str | None = None, options: Options = DEFAULTS) -> Plan:
    """Return what `convert` would write: its size to the byte, its tensors with their types. Write nothing."""
    with _opened(source, quant, name=name, options=options, force=True) as job:
        return job.plan


def forecast_gguf(
    source: Path,
    out: Path,
    *,
    quant: str,
    name: str | None = None,
    force: bool = False,
    threads: int | None = None,
    options: Options = DEFAULTS,
) -> Forecast:
    """Return what `convert` would write and need; raise what it would raise before it writes its first byte."""
    with _opened(source, quant, name=name, options=options, force=force) as job:
        sizes = {
            file.name: planned.size for file, planned in zip(files.paths(out, job.plan), job.plan.files, strict=True)
        }
        memory = forecast.gguf_memory(encoding.SLICE, threads or usable_cores(), _tokenizer_bytes(job))
        return Forecast(str(out), job.plan.quant, sizes, job.plan.types, memory, job.notes)


def merge(
    source: Path,
    out: Path,
    *,
    force: bool = False,
    part_bytes: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Copy the GGUF file `source`, with all its parts, to the one file `out`, or to parts of at most `part_bytes`.

    Raise CheckpointError or OutputError.
    """
    started = time.monotonic()
    with GgufSource(source) as file:
        job = Job(file, requantizing.make_copy(file, part_bytes))
        first = files.write(
            job, source, out, force=force, threads=1, progress=progress, recipe={"format": "gguf"}, packages=()
        )
        return _report(job, first, started)


def _report(job: Job, first: Path, started: float) -> Report:
    seconds = time.monotonic() - started
    return Report(first, job.plan.size, len(job.plan.tensors), job.plan.quant, seconds, notes=job.notes)


def is_gguf(path: Path) -> bool:
    """Return whether a file is GGUF by its name or its first bytes. Raise CheckpointError if it cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return path.suffix.lower() == ".gguf" or file.read(len(MAGIC)) == MAGIC
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}", "check its permissions") from exc


@contextmanager
def _opened(source: Path, quant: str, *, name: str | None, options: Options, force: bool) -> Iterator[Job]:
    """Open the source, with its plan, for the body. Raise UsageError, CheckpointError or ConversionError."""
    importance = imatrix_file.read(options.imatrix) if options.imatrix else None
    overrides = tuple(quants.override(text) for text in options.tensor_types)
    recipe = Recipe(quants.quantization(quant), overrides, importance is not None)
    extra = importance.metadata if importance else {}
    if is_gguf(source):
        _refuse_checkpoint_options(source, options)
        with GgufSource(source) as file:
            plan = requantizing.make_plan(file, recipe, extra, options.part_bytes, force=force)
            notes = (requantizing.LOSSY_TWICE,) if requantizing.lossy_twice(file) else ()
            yield Job(file, plan, importance, notes + _notes(plan, recipe))
        return
    with Checkpoint(source) as checkpoint:
        checkpoint.stretch(options.yarn)
        adapters.apply(checkpoint, options.adapter)
        plan = planning.make_plan(checkpoint, recipe, name or source.resolve().name, extra, options.part_bytes)
        yield Job(checkpoint, plan, importance, checkpoint.notes + _notes(plan, recipe))


def _refuse_checkpoint_options(source: Path, options: Options) -> None:
    if options.yarn or options.adapter:
        flag, rest = ("--yarn", f"--yarn {options.yarn}") if options.yarn else ("--adapter", "--adapter DIR")
        raise UsageError(
            f"{flag} needs a checkpoint folder, {source.name} is a GGUF file",
            f"localqwen convert CHECKPOINT {rest}, with the official weights as CHECKPOINT",
        )


def _notes(plan: Plan, recipe: Recipe) -> tuple[str, ...]:
    """Return sentences about tensors that do not get the type which the quantization's name promises."""
    base = recipe.quantization.base
    notes: tuple[str, ...] = ()
    if plan.quant == "mxfp4" and "MXFP4" not in plan.types:
        notes += ("mxfp4 is for the experts of a mixture, and this model has none: its matrices become Q8_0",)
    matrices = [each.stored for each in plan.tensors if quants.quantizable(each.stored.name, each.stored.shape)]
    uneven = [each for each in matrices if not base.fits(each.shape[-1])]
    if uneven:
        others = ", ".join(dict.fromkeys(each.type.name for each in uneven))
        notes += (
            f"{len(uneven)} of {len(matrices)} matrices do not divide into blocks of {base.block}: {others} instead",
        )
    return notes


def _tokenizer_bytes(job: Job) -> int:
    path = job.source.folder / "tokenizer.json"
    return path.stat().st_size if isinstance(job.source, Checkpoint) else 0
