"""The official layout in 16 bit, from weights that are stored otherwise: an MLX folder, FP8, AWQ, GPTQ.

What a quantisation has dropped does not come back; this is for tools that read only the official layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from convert import Progress, manifest, mlx_layout, qwen3, target, target_folder
from convert.checkpoint import COMPANIONS, Checkpoint
from convert.encode import check_values, from_float32, to_float32
from convert.hashing import Digest, InputHashes
from convert.mlx_layout import Stored
from convert.quants import TYPES
from convert.shard_writer import ShardWriter
from localqwen.errors import OutputError
from localqwen.formats import qwen3_config
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SLICE = 1 << 20


def planned(checkpoint: Checkpoint) -> list[Stored]:
    """All tensors in the order of the layers; numbers that were decoded to 32 bit in the config's 16. Raises
    CheckpointError."""
    config = qwen3_config.parse(checkpoint.config)
    qwen3.check_tensors(config, checkpoint.tensors)
    names = [name for weight in mlx_layout.weights(config) for name in weight.sources]
    wanted = "F16" if config.dtype == "F16" else "BF16"
    found = [checkpoint.tensors[name] for name in names]
    return [Stored(each.name, wanted if each.dtype == "F32" else each.dtype, each.shape) for each in found]


def write(
    checkpoint: Checkpoint, out: Path, *, force: bool, progress: Callable[[Progress], None] | None
) -> tuple[dict[str, Digest], int]:
    """Makes the folder `out`; gives the digests of its files and how many tensors they hold.

    Raises CheckpointError, OutputError.
    """
    if out.exists() and checkpoint.folder.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"{out} holds the weights that are read", "choose another folder for the output")
    tensors = planned(checkpoint)
    size = sum(tensor.bytes for tensor in tensors)
    target.check_space(out, size)
    parts = mlx_layout.shards(tensors, mlx_layout.MAX_SHARD)
    shards = dict(zip(mlx_layout.shard_names(len(parts)), parts, strict=True))
    with (
        InputHashes(checkpoint.files((mlx_layout.INDEX, "config.json", *COMPANIONS))) as hashes,
        target_folder.writing(out, size=size, force=force) as folder,
    ):
        digests = _write_weights(folder, checkpoint, shards, progress) | _write_small(folder, checkpoint, shards)
        written = manifest.make(
            checkpoint.folder, recipe={"format": "official"}, inputs=hashes.result(), outputs=digests, packages=()
        )
        manifest.write(folder / manifest.FOLDER_NAME, written)
    return digests, len(tensors)


def _write_small(folder: Path, checkpoint: Checkpoint, shards: Mapping[str, list[Stored]]) -> dict[str, Digest]:
    contents = {"config.json": _json(checkpoint.config)}
    if len(shards) > 1:
        contents[mlx_layout.INDEX] = _json(mlx_layout.index(shards, 0))
    return target_folder.write_small_files(folder, checkpoint, contents)


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"


def _write_weights(
    folder: Path,
    checkpoint: Checkpoint,
    shards: Mapping[str, list[Stored]],
    progress: Callable[[Progress], None] | None,
) -> dict[str, Digest]:
    digests = {}
    total = sum(checkpoint.tensors[each.name].bytes for tensors in shards.values() for each in tensors)
    done = 0
    for shard, tensors in shards.items():
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
