"""The files of an MLX folder, written in one pass: rows are read, packed by MLX's own quantizer, written as they come.

The scales and biases of a weight wait in memory until its packed numbers are written; nothing else does. Rows do not
influence each other, so that slices of them give the bits that `mlx_lm.convert` gets from the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from convert.floats import check_values
from convert.mlx import arrays
from convert.mlx.planning import Plan, PlannedWeight
from convert.mlx.schemes import Packing, Scheme
from convert.options import Progress
from convert.output import file as output_file
from convert.output import folder as output_folder
from convert.output import manifest
from convert.output.hashing import Digest, InputHashes
from convert.output.shards import INDEX, ShardWriter
from convert.sources.checkpoint import COMPANIONS, Checkpoint
from localqwen.errors import ConversionError
from localqwen.formats.dtypes import FLOATS
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: The tensor's name, the next bytes of it, and how many bytes of the checkpoint were read for them.
Piece = tuple[str, memoryview, int]


def write(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path,
    *,
    force: bool,
    progress: Callable[[Progress], None] | None = None,
    changed: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, Digest]:
    """Write the folder `out`; return the digests of its files. The manifest records the scheme and `changed`.

    Raise CheckpointError, OutputError, ConversionError or EngineUnavailable.
    """
    arrays.library()
    output_file.check_space(out, plan.size)
    with (
        InputHashes(checkpoint.files((INDEX, "config.json", *COMPANIONS))) as hashes,
        output_folder.writing(out, size=plan.size, force=force) as folder,
    ):
        outputs = _write_weights(folder, checkpoint, plan, progress) | _write_small_files(folder, checkpoint, plan)
        recipe = {**_recipe(plan.scheme), **changed}
        written = manifest.make(
            checkpoint.folder, recipe=recipe, inputs=hashes.result(), outputs=outputs, packages=("mlx",)
        )
        manifest.write(folder / manifest.FOLDER_NAME, written)
    return outputs


def _recipe(scheme: Scheme) -> dict[str, Any]:
    usual: Mapping[str, Any] = asdict(scheme.usual) if scheme.usual else {"bits": 16}
    return {"format": "mlx", **usual, **({"recipe": scheme.recipe} if scheme.recipe else {})}


def _write_small_files(folder: Path, checkpoint: Checkpoint, plan: Plan) -> dict[str, Digest]:
    contents = {
        "config.json": json.dumps(plan.config, indent=4).encode(),
        INDEX: json.dumps(plan.index, indent=4).encode(),
    }
    return output_folder.write_small_files(folder, checkpoint, contents)


def _write_weights(
    folder: Path, checkpoint: Checkpoint, plan: Plan, progress: Callable[[Progress], None] | None
) -> dict[str, Digest]:
    """Write one shard after the other; the scales of a weight may be in the next one."""
    shards, digests = iter(plan.shards.items()), {}
    total = sum(checkpoint.tensors[source].bytes for each in plan.weights for source in each.weight.sources)
    done = 0
    with ExitStack() as stack:
        file = None
        for name, data, read in _pieces(checkpoint, plan):
            if file is None:
                shard, tensors = next(shards)
                file = stack.enter_context(ShardWriter(folder / shard, tensors))
            file.write(name, data)
            if file.is_full:
                digests[shard] = file.finish()
                stack.close()
                file = None
            done += read
            if progress is not None:
                progress(Progress(name, done, total))
    return digests


def _pieces(checkpoint: Checkpoint, plan: Plan) -> Iterator[Piece]:
    for planned in plan.weights:
        slices = _slices(checkpoint, planned)
        yield from _packed(slices, planned, planned.packing) if planned.packing else _plain(slices, planned)


def _slices(checkpoint: Checkpoint, planned: PlannedWeight) -> Iterator[tuple[NDArray[Any], SourceTensor]]:
    """Yield the rows of a weight in order, expert by expert, with their tensor.

    The memory of a slice is given back when the next one is taken.
    """
    for name in planned.weight.sources:
        file, tensor = checkpoint.file_of(name), checkpoint.tensors[name]
        count = tensor.rows
        step = max(1, arrays.SLICE // tensor.shape[-1])
        for first in range(0, count, step):
            rows = file.rows(tensor, first, min(step, count - first))
            check_values(rows, tensor.name, tensor.dtype, FLOATS[planned.dtype])
            yield rows, tensor
            file.forget(tensor, first + len(rows))


def _plain(slices: Iterator[tuple[NDArray[Any], SourceTensor]], planned: PlannedWeight) -> Iterator[Piece]:
    (stored,) = planned.stored
    for rows, tensor in slices:
        same = tensor.dtype == planned.dtype
        data = rows if same else arrays.as_numpy(_as_wanted(rows, tensor.dtype, planned.dtype))
        yield stored.name, _bytes(data), rows.nbytes


def _packed(
    slices: Iterator[tuple[NDArray[Any], SourceTensor]], planned: PlannedWeight, packing: Packing
) -> Iterator[Piece]:
    weight, *others = planned.stored
    waiting: list[list[NDArray[Any]]] = [[] for _ in others]
    for rows, tensor in slices:
        numbers, *rest = _quantize(_as_wanted(rows, tensor.dtype, planned.dtype), packing)
        for parts, part in zip(waiting, rest, strict=True):
            parts.append(part)
        yield weight.name, _bytes(numbers), rows.nbytes
    for stored, parts in zip(others, waiting, strict=True):
        for part in parts:
            yield stored.name, _bytes(part), 0


def _quantize(rows: Any, packing: Packing) -> list[NDArray[Any]]:
    """Return packed numbers, scales and, if affine, biases.

    Raise ConversionError for a packing that this MLX does not have.
    """
    mx = arrays.library()
    try:
        return [
            arrays.as_numpy(each) for each in mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode)
        ]
    except (ValueError, RuntimeError, TypeError) as exc:
        raise ConversionError(
            f"this MLX does not quantize to {packing.bits} bits in groups of {packing.group_size} ({packing.mode}): "
            f"{str(exc).splitlines()[0]}",
            "pip install --upgrade mlx",
        ) from exc


def _as_wanted(rows: NDArray[Any], dtype: str, wanted: str) -> Any:
    return arrays.as_mlx(rows, dtype).astype(getattr(arrays.library(), FLOATS[wanted].torch))


def _bytes(array: NDArray[Any]) -> memoryview:
    import numpy as np

    return array.reshape(-1).view(np.uint8).data
