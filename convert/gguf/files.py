"""GGUF files on disk: the tensors of a plan, encoded on several threads, hashed and written in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from convert.gguf import encoding
from convert.gguf.head import padding
from convert.gguf.planning import Plan, PlannedFile, PlannedTensor
from convert.imatrix.file import Importance
from convert.options import Progress
from convert.output import file as output_file
from convert.output import manifest
from convert.output.hashing import Digest, HashedWriter, InputHashes
from convert.sources.checkpoint import Checkpoint
from convert.sources.gguf import GgufSource
from localqwen.errors import OutputError
from localqwen.formats.gguf_parts import part_name
from localqwen.machine import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The files beside the weights from which a GGUF file takes something.
_READ = (
    "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """An open source, the plan of the files to write, the importance matrix if there is one, and notes for the user."""

    source: Checkpoint | GgufSource
    plan: Plan
    importance: Importance | None = None
    notes: tuple[str, ...] = ()

    def parts(self, tensor: PlannedTensor) -> list[encoding.Part]:
        """Return the source tensors that are stacked to `tensor`, each with its part of the importance matrix."""
        known = self.importance.of(tensor.stored) if self.importance else None
        each: Sequence[NDArray[np.float32] | None] = known or [None] * len(tensor.sources)
        return [
            encoding.Part(self.source.file_of(name), self.source.tensors[name], importance)
            for name, importance in zip(tensor.sources, each, strict=True)
        ]


def paths(out: Path, plan: Plan) -> list[Path]:
    """Return the files that a plan writes: `out` alone, or its parts under llama.cpp's names."""
    if b"split.count" not in plan.files[0].head:
        return [out]
    count = len(plan.files)
    return [out.with_name(part_name(out.name.removesuffix(".gguf"), number + 1, count)) for number in range(count)]


def write(
    job: Job,
    source: Path,
    out: Path,
    *,
    force: bool,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
    recipe: Mapping[str, Any],
    packages: Sequence[str],
) -> Path:
    """Write the files of a job and their manifest; return the first file.

    The manifest records `recipe`, the digests, and the versions of `packages`. Raise CheckpointError, OutputError,
    ConversionError or EngineUnavailable.
    """
    targets = paths(out, job.plan)
    _check(job, targets, force=force)
    with InputHashes(job.source.files(_READ)) as hashes, ExitStack() as stack:
        # The first part gets its name last: a loader that finds it finds all.
        opened = [
            stack.enter_context(output_file.writing(file, size=planned.size, force=force))
            for file, planned in zip(targets, job.plan.files, strict=True)
        ]
        digests = _write_all(job, opened, threads, progress)
        inputs = hashes.result()
        if force or not targets[0].exists():  # else another run was quicker, and the manifest is its own
            manifest.file_of(targets[0]).unlink(missing_ok=True)  # it describes the file that is about to be replaced
    outputs = {file.name: digest for file, digest in zip(targets, digests, strict=True)}
    written = manifest.make(source, recipe=recipe, inputs=inputs, outputs=outputs, packages=packages)
    manifest.write(manifest.file_of(targets[0]), written)
    return targets[0]


def _check(job: Job, targets: Sequence[Path], *, force: bool) -> None:
    for file in targets:
        output_file.check(file, force=force)
        if file.exists() and any(file.samefile(read) for read in job.source.weight_files):
            raise OutputError(f"{file} is part of the model that is read", "choose another file for the output")
    output_file.check_space(targets[0], job.plan.size)


def _write_all(
    job: Job, opened: Sequence[BinaryIO], threads: int | None, progress: Callable[[Progress], None] | None
) -> list[Digest]:
    tensors = job.source.tensors
    total = sum(tensors[source].bytes for tensor in job.plan.tensors for source in tensor.sources)
    done, digests = 0, []
    count = threads or usable_cores()
    with ThreadPoolExecutor(count, "convert") as pool:
        for file, planned in zip(opened, job.plan.files, strict=True):
            with HashedWriter(file) as writer:
                for name, read in _write_one(job, planned, writer, pool, count + 2):
                    done += read
                    if progress is not None:
                        progress(Progress(name, done, total))
                digests.append(writer.digest())
    return digests


def _write_one(
    job: Job, planned: PlannedFile, writer: HashedWriter, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[str, int]]:
    """Write one file; after each slice give its tensor's name and how many bytes of the source were read for it."""
    writer.write(memoryview(planned.head))
    for tensor in planned.tensors:
        for data, source_bytes in encoding.encoded(job.parts(tensor), tensor.stored.type, pool, ahead):
            writer.write(data.data)
            yield tensor.stored.name, source_bytes
        writer.write(memoryview(bytes(padding(tensor.stored.size))))
