"""Official checkpoint -> MLX folder, in one pass: rows are read, packed by MLX's own quantiser, written as they come.

Of a weight, its scales and biases wait in memory until its packed numbers are written; nothing else does. Rows do not
influence each other, so slices of them give the bits that `mlx_lm.convert` gets from the whole.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from convert import Progress, manifest, mlx_layout, target, target_folder
from convert.checkpoint import COMPANIONS, Checkpoint
from convert.encode import check_values
from convert.hashing import Digest, InputHashes
from convert.mlx_planning import Plan, PlannedWeight
from convert.mlx_schemes import Packing, Scheme
from convert.shard_writer import ShardWriter
from localqwen.errors import ConversionError, EngineUnavailable
from localqwen.formats.dtypes import FLOATS
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Elements per slice: large enough that calls do not count, small enough that memory stays low.
SLICE = 1 << 22

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
    """Makes the folder `out` and gives the digests of its files. `changed` is what the manifest says beside the scheme.

    Raises CheckpointError, OutputError, ConversionError, EngineUnavailable.
    """
    library()
    target.check_space(out, plan.size)
    with (
        InputHashes(checkpoint.files((mlx_layout.INDEX, "config.json", *COMPANIONS))) as hashes,
        target_folder.writing(out, size=plan.size, force=force) as folder,
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
        mlx_layout.INDEX: json.dumps(plan.index, indent=4).encode(),
    }
    return target_folder.write_small_files(folder, checkpoint, contents)


def _write_weights(
    folder: Path, checkpoint: Checkpoint, plan: Plan, progress: Callable[[Progress], None] | None
) -> dict[str, Digest]:
    """One shard after the other; the scales of a weight may lie in the next one."""
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
    """The rows of a weight in order, expert by expert. What was taken is dropped from memory with the next one."""
    for name in planned.weight.sources:
        file, tensor = checkpoint.file_of(name), checkpoint.tensors[name]
        count = tensor.rows
        step = max(1, SLICE // tensor.shape[-1])
        for first in range(0, count, step):
            rows = file.rows(tensor, first, min(step, count - first))
            check_values(rows, tensor.name, tensor.dtype, FLOATS[planned.dtype])
            yield rows, tensor
            file.forget(tensor, first + len(rows))


def _plain(slices: Iterator[tuple[NDArray[Any], SourceTensor]], planned: PlannedWeight) -> Iterator[Piece]:
    (stored,) = planned.stored
    for rows, tensor in slices:
        same = tensor.dtype == planned.dtype
        data = rows if same else as_numpy(_as_wanted(rows, tensor.dtype, planned.dtype))
        yield stored.name, _bytes(data), rows.nbytes


def _packed(
    slices: Iterator[tuple[NDArray[Any], SourceTensor]], planned: PlannedWeight, packing: Packing
) -> Iterator[Piece]:
    weight, *others = planned.stored
    waiting: list[list[NDArray[Any]]] = [[] for _ in others]
    for rows, tensor in slices:
        numbers, *rest = _quantise(_as_wanted(rows, tensor.dtype, planned.dtype), packing)
        for parts, part in zip(waiting, rest, strict=True):
            parts.append(part)
        yield weight.name, _bytes(numbers), rows.nbytes
    for stored, parts in zip(others, waiting, strict=True):
        for part in parts:
            yield stored.name, _bytes(part), 0


def _quantise(rows: Any, packing: Packing) -> list[NDArray[Any]]:
    """Packed numbers, scales and, if affine, biases."""
    mx = library()
    try:
        return [as_numpy(each) for each in mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode)]
    except (ValueError, RuntimeError, TypeError) as exc:
        raise ConversionError(
            f"this MLX does not quantise to {packing.bits} bits in groups of {packing.group_size} ({packing.mode}): "
            f"{str(exc).splitlines()[0]}",
            "pip install --upgrade mlx",
        ) from exc


def _as_wanted(rows: NDArray[Any], dtype: str, wanted: str) -> Any:
    return as_mlx(rows, dtype).astype(getattr(library(), FLOATS[wanted].torch))


def as_mlx(rows: NDArray[Any], dtype: str) -> Any:
    """bfloat16 comes as its bits; numpy has no such type."""
    import numpy as np

    mx = library()
    array = mx.array(np.require(rows, requirements=["C", "A"]))  # a header of odd length shifts what follows
    if dtype == "BF16":
        array = array.view(mx.bfloat16)
    return array


def as_numpy(array: Any) -> NDArray[Any]:
    """A copy of an MLX array's numbers; bfloat16 as its bits."""
    import numpy as np

    mx = library()
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _bytes(array: NDArray[Any]) -> memoryview:
    import numpy as np

    return array.reshape(-1).view(np.uint8).data


@cache
def library() -> Any:
    """mlx.core. Raises EngineUnavailable where MLX is missing or does not load."""
    try:
        import mlx.core as mx
    except (ImportError, OSError) as exc:
        raise EngineUnavailable(f"converting to MLX needs mlx, which does not load: {exc}", _install_hint()) from exc
    return mx


def _install_hint() -> str:
    """MLX without a GPU is another package; it packs the same numbers."""
    if sys.platform == "darwin":
        return "pip install mlx" if platform.machine() == "arm64" else "MLX needs Apple Silicon; --to gguf runs here"
    return "pip install 'mlx[cpu]'"
