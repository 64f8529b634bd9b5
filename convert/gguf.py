"""GGUF files: what is read and what is written, put together. Sources are checkpoint folders and GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from convert import Options, Progress, encode, forecast, manifest, quants, target
from convert.checkpoint import Checkpoint
from convert.gguf_file import padding
from convert.gguf_source import GgufSource
from convert.hashing import Digest, HashedWriter, InputHashes
from convert.imatrix import Importance
from convert.planning import Plan, PlannedFile, PlannedTensor, make_plan
from localqwen.errors import CheckpointError, OutputError, UsageError
from localqwen.formats.gguf_parts import part_name
from localqwen.formats.gguf_reader import MAGIC
from localqwen.machine import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The files beside the weights that a GGUF file takes something from.
_READ = (
    "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """An open source, the plan of what becomes of it, and the importance matrix that helps."""

    source: Checkpoint | GgufSource
    plan: Plan
    importance: Importance | None = None
    notes: tuple[str, ...] = ()

    def parts(self, tensor: PlannedTensor) -> list[encode.Part]:
        known = self.importance.of(tensor.stored) if self.importance else None
        each: Sequence[NDArray[np.float32] | None] = known or [None] * len(tensor.sources)
        return [
            encode.Part(self.source.file_of(name), self.source.tensors[name], importance)
            for name, importance in zip(tensor.sources, each, strict=True)
        ]


def is_gguf(path: Path) -> bool:
    """By its name, or by what it begins with. Raises CheckpointError for a file that cannot be read."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".gguf" or file.read(len(MAGIC)) == MAGIC
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}", "check its permissions") from exc


@contextmanager
def opened(source: Path, quant: str, *, name: str | None, options: Options, force: bool) -> Iterator[Job]:
    """Raises UsageError, CheckpointError, ConversionError."""
    from convert import adapters, imatrix, requantising

    importance = imatrix.read(options.imatrix) if options.imatrix else None
    overrides = tuple(quants.override(text) for text in options.tensor_types)
    recipe = quants.Recipe(quants.quantization(quant), overrides, importance is not None)
    extra = importance.metadata if importance else {}
    if is_gguf(source):
        if options.yarn or options.adapter:
            flag, rest = ("--yarn", f"--yarn {options.yarn}") if options.yarn else ("--adapter", "--adapter DIR")
            raise UsageError(
                f"{flag} needs a checkpoint folder, {source.name} is a GGUF file",
                f"localqwen convert CHECKPOINT {rest}, with the official weights as CHECKPOINT",
            )
        with GgufSource(source) as file:
            plan = requantising.make_plan(file, recipe, extra, options.part_bytes, force=force)
            notes = (requantising.LOSSY_TWICE,) if requantising.lossy_twice(file) else ()
            yield Job(file, plan, importance, notes + _notes(plan, recipe))
        return
    with Checkpoint(source) as checkpoint:
        checkpoint.stretch(options.yarn)
        adapters.apply(checkpoint, options.adapter)
        plan = make_plan(checkpoint, recipe, name or source.resolve().name, extra, options.part_bytes)
        yield Job(checkpoint, plan, importance, checkpoint.notes + _notes(plan, recipe))


def _notes(plan: Plan, recipe: quants.Recipe) -> tuple[str, ...]:
    """Where the result is not what the quantisation's name promises."""
    base = recipe.quantization.base
    notes: tuple[str, ...] = ()
    if plan.quant == "mxfp4" and "MXFP4" not in plan.types:
        notes += ("mxfp4 is for the experts of a mixture, and this model has none: its matrices become Q8_0",)
    matrices = [each.stored for each in plan.tensors if quants.quantisable(each.stored.name, each.stored.shape)]
    uneven = [each for each in matrices if not base.fits(each.shape[-1])]
    if uneven:
        others = ", ".join(dict.fromkeys(each.type.name for each in uneven))
        notes += (
            f"{len(uneven)} of {len(matrices)} matrices do not divide into blocks of {base.block}: {others} instead",
        )
    return notes


def outputs(out: Path, plan: Plan) -> list[Path]:
    """The file, or its parts by llama.cpp's names."""
    count = len(plan.files)
    stem = out.name.removesuffix(".gguf")
    return [out] if not _is_split(plan) else [out.with_name(part_name(stem, i + 1, count)) for i in range(count)]


def _is_split(plan: Plan) -> bool:
    return b"split.count" in plan.files[0].head


def write(
    job: Job, out: Path, *, force: bool, threads: int | None, progress: Callable[[Progress], None] | None
) -> tuple[Path, dict[str, Digest], dict[str, Digest]]:
    """Makes the files; gives the first one, and the digests of what was read and written.

    Raises CheckpointError, OutputError, ConversionError, EngineUnavailable.
    """
    files = outputs(out, job.plan)
    for file in files:
        target.check(file, force=force)
        if file.exists() and any(file.samefile(read) for read in job.source.weight_files):
            raise OutputError(f"{file} is part of the model that is read", "choose another file for the output")
    target.check_space(files[0], job.plan.size)
    with InputHashes(job.source.files(_READ)) as hashes, ExitStack() as stack:
        # The first part gets its name last: a loader that finds it finds all.
        writing = [
            stack.enter_context(target.writing(file, size=planned.size, force=force))
            for file, planned in zip(files, job.plan.files, strict=True)
        ]
        digests = _write(job, writing, threads, progress)
        inputs = hashes.result()
        if force or not files[0].exists():  # else another run was quicker, and the manifest is its own
            manifest.file_of(files[0]).unlink(missing_ok=True)  # it describes what is about to be replaced
    return files[0], inputs, {file.name: digest for file, digest in zip(files, digests, strict=True)}


def _write(
    job: Job, files: list[BinaryIO], threads: int | None, progress: Callable[[Progress], None] | None
) -> list[Digest]:
    tensors = job.source.tensors
    total = sum(tensors[source].bytes for tensor in job.plan.tensors for source in tensor.sources)
    done, digests = 0, []
    count = threads or usable_cores()
    with ThreadPoolExecutor(count, "convert") as pool:
        for file, planned in zip(files, job.plan.files, strict=True):
            with HashedWriter(file) as writer:
                for name, read in _write_file(job, planned, writer, pool, count + 2):
                    done += read
                    if progress is not None:
                        progress(Progress(name, done, total))
                digests.append(writer.digest())
    return digests


def _write_file(
    job: Job, planned: PlannedFile, writer: HashedWriter, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[str, int]]:
    """After each slice the tensor's name and the bytes that were read for it."""
    writer.write(memoryview(planned.head))
    for tensor in planned.tensors:
        for data, source_bytes in encode.encoded(job.parts(tensor), tensor.stored.type, pool, ahead):
            writer.write(data.data)
            yield tensor.stored.name, source_bytes
        writer.write(memoryview(bytes(padding(tensor.stored.size))))


def forecast_of(job: Job, out: Path, threads: int | None) -> forecast.Forecast:
    plan = job.plan
    files = {file.name: planned.size for file, planned in zip(outputs(out, plan), plan.files, strict=True)}
    memory = forecast.gguf_memory(encode.SLICE, threads or usable_cores(), _tokenizer_bytes(job))
    return forecast.Forecast(str(out), plan.quant, files, plan.types, memory, job.notes)


def _tokenizer_bytes(job: Job) -> int:
    path = job.source.folder / "tokenizer.json"
    return path.stat().st_size if isinstance(job.source, Checkpoint) else 0
