"""The official layout in 16 bit, from weights that are stored otherwise: an MLX folder, FP8, AWQ, GPTQ.

It is for tools that read only the official layout. What a quantization has dropped does not come back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from convert.floats import check_values, from_float32, to_float32
from convert.gguf import architecture
from convert.gguf.quants import TYPES
from convert.mlx import layout as mlx_layout
from convert.options import Progress, Report
from convert.output import file as output_file
from convert.output import folder as output_folder
from convert.output import manifest, shards
from convert.output.hashing import Digest, InputHashes
from convert.output.shards import ShardWriter, Stored
from convert.sources.checkpoint import COMPANIONS, Checkpoint
from localqwen.errors import OutputError
from localqwen.formats import qwen3_config
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SLICE = 1 << 20


def dequantize(
    source: Path, out: Path, *, force: bool = False, progress: Callable[[Progress], None] | None = None
) -> Report:
    """Write the MLX folder or quantized checkpoint `source` as the folder `out` in the official layout, in 16 bit.

    Raise CheckpointError or OutputError, and EngineUnavailable if MLX is needed and missing.
    """
    started = time.monotonic()
    out = out if out.name not in ("", "..") else out.resolve()
    output_folder.check(out, force=force)
    with Checkpoint(source, mlx=True) as checkpoint:
        written, tensors = write(checkpoint, out, force=force, progress=progress)
    size = sum(digest.bytes for digest in written.values())
    return Report(out, size, tensors, "16bit", time.monotonic() - started)


def planned(checkpoint: Checkpoint) -> list[Stored]:
    """Return all tensors in the order of the layers; numbers decoded to 32 bit get the 16-bit type of the config.

    Raise CheckpointError.
    """
    config = qwen3_config.parse(checkpoint.config)
    architecture.check_tensors(config, checkpoint.tensors)
    names = [name for weight in mlx_layout.weights(config) for name in weight.sources]
    wanted = "F16" if config.dtype == "F16" else "BF16"
    found = [checkpoint.tensors[name] for name in names]
    return [Stored(each.name, wanted if each.dtype == "F32" else each.dtype, each.shape) for each in found]


def write(
    checkpoint: Checkpoint, out: Path, *, force: bool, progress: Callable[[Progress], None] | None
) -> tuple[dict[str, Digest], int]:
    """Write the folder `out`; return the digests of its files and how many tensors they hold.

    Raise CheckpointError or OutputError.
    """
    if out.exists() and checkpoint.folder.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"{out} holds the weights that are read", "choose another folder for the output")
    tensors = planned(checkpoint)
    size = sum(tensor.bytes for tensor in tensors)
    output_file.check_space(out, size)
    files = shards.by_file(tensors)
    with (
        InputHashes(checkpoint.files((shards.INDEX, "config.json", *COMPANIONS))) as hashes,
        output_folder.writing(out, size=size, force=force) as folder,
    ):
        digests = _write_weights(folder, checkpoint, files, progress) | _write_small(folder, checkpoint, files)
        written = manifest.make(
            checkpoint.folder, recipe={"format": "official"}, inputs=hashes.result(), outputs=digests, packages=()
        )
        manifest.write(folder / manifest.FOLDER_NAME, written)
    return digests, len(tensors)


def _write_small(folder: Path, checkpoint: Checkpoint, files: Mapping[str, list[Stored]]) -> dict[str, Digest]:
    contents = {"config.json": _json(checkpoint.config)}
    if len(files) > 1:
        contents[shards.INDEX] = _json(shards.index(files, 0))
    return output_folder.write_small_files(folder, checkpoint, contents)


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def _write_weights(
    folder: Path,
    checkpoint: Checkpoint,
    files: Mapping[str, list[Stored]],
    progress: Callable[[Progress], None] | None,
) -> dict[str, Digest]:
    digests = {}
    total = sum(checkpoint.tensors[each.name].bytes for tensors in files.values() for each in tensors)
    done = 0
    for shard, tensors in files.items():
        with ShardWriter(folder / shard, tensors, made_for="pt") as file:
            for stored in tensors:
                source = checkpoint.tensors[stored.name]
                for first in range(0, source.rows, _step(source)):
                    count = min(_step(source), source.rows - first)
                    file.write(stored.name, _slice(checkpoint, source, stored.dtype, first, count))
                    done += count * source.row_bytes
                    if progress is not None:
                        progress(Progress(stored.name, done, total))
            digests[shard] = file.finish()
    return digests


def _step(source: SourceTensor) -> int:
    return max(1, _SLICE // source.shape[-1])


def _slice(checkpoint: Checkpoint, source: SourceTensor, dtype: str, first: int, count: int) -> memoryview:
    import numpy as np

    file = checkpoint.file_of(source.name)
    rows: NDArray[np.generic] = file.rows(source, first, count)
    kind = TYPES[dtype.lower()]
    check_values(rows, source.name, source.dtype, kind)
    data = rows if source.dtype == dtype else from_float32(to_float32(rows, source.dtype), kind)
    copy = np.array(data)
    file.forget(source, first + count)
    return copy.reshape(-1).view(np.uint8).data
