"""What a conversion to MLX will write, known before it writes anything: each tensor, each file, config and index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from convert import Options, forecast, mlx_layout, qwen3
from convert.checkpoint import Checkpoint
from convert.mlx_layout import Stored, Weight
from convert.mlx_schemes import Packing, Scheme, packing
from localqwen.errors import CheckpointError, ConversionError, UsageError
from localqwen.formats import dtypes, qwen3_config


@dataclass(frozen=True)
class PlannedWeight:
    """`packing` is None for what stays as it is; numbers that are not packed have `dtype`, as safetensors spells it."""

    weight: Weight
    packing: Packing | None
    dtype: str

    @property
    def stored(self) -> list[Stored]:
        return mlx_layout.stored(self.weight, self.packing, self.dtype)


@dataclass(frozen=True)
class Plan:
    """`shards` are the weight files by name, `config` and `index` the JSON files of the folder."""

    scheme: Scheme
    weights: tuple[PlannedWeight, ...] = field(repr=False)
    shards: Mapping[str, list[Stored]] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    index: Mapping[str, Any] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensors in self.shards.values() for tensor in tensors)

    @property
    def tensor_count(self) -> int:
        return sum(map(len, self.shards.values()))

    @property
    def left_whole(self) -> tuple[str, ...]:
        """The matrices that a quantisation leaves as they are, because its groups do not divide their rows."""
        if self.scheme.usual is None:
            return ()
        return tuple(each.weight.path for each in self.weights if each.packing is None and len(each.weight.shape) > 1)


@contextmanager
def opened(source: Path, scheme: Scheme, options: Options) -> Iterator[tuple[Checkpoint, Plan]]:
    """Raises UsageError, CheckpointError, ConversionError."""
    from convert import adapters

    if options.tensor_types or options.imatrix or options.part_bytes:
        raise UsageError("types of single tensors, importance matrices and parts are for GGUF", "--to gguf")
    if source.suffix == ".gguf" and source.is_file():
        raise CheckpointError(f"{source} is a GGUF file, MLX needs a checkpoint folder", "give the official checkpoint")
    with Checkpoint(source) as checkpoint:
        checkpoint.stretch(options.yarn)
        adapters.apply(checkpoint, options.adapter)
        yield checkpoint, make_plan(checkpoint, scheme)


def make_plan(checkpoint: Checkpoint, scheme: Scheme) -> Plan:
    """Checks the whole checkpoint except the weights' values. Raises CheckpointError, ConversionError."""
    config = qwen3_config.parse(checkpoint.config)
    qwen3.check_tensors(config, checkpoint.tensors)
    checkpoint.json("tokenizer.json")
    weights = tuple(
        PlannedWeight(
            weight, packing(scheme, weight.path, weight.shape, config.layers), _dtype(checkpoint, weight, scheme)
        )
        for weight in mlx_layout.weights(config)
    )
    packed = {each.weight.path: each.packing for each in weights if each.packing is not None}
    if scheme.usual is not None and not packed:
        raise ConversionError(
            f"groups of {scheme.usual.group_size} divide no weight of this checkpoint: nothing would be quantised",
            "choose a smaller --group-size",
        )
    parts = mlx_layout.shards([tensor for each in weights for tensor in each.stored], mlx_layout.MAX_SHARD)
    shards = dict(zip(mlx_layout.shard_names(len(parts)), parts, strict=True))
    written_config = mlx_layout.config_json(checkpoint.config, checkpoint.generation_config, scheme, packed)
    index = mlx_layout.index(shards, sum(prod(each.weight.shape) for each in weights))
    return Plan(scheme, weights, shards, written_config, index)


def _dtype(checkpoint: Checkpoint, weight: Weight, scheme: Scheme) -> str:
    """As in mlx-lm config.json's torch_dtype, else what is stored. A plain copy is never wider than 16 bit."""
    torch = str(checkpoint.config.get("torch_dtype"))
    found = sorted({checkpoint.tensors[source].dtype for source in weight.sources})
    dtype = dtypes.TORCH[torch].name if torch in dtypes.TORCH else found[0]
    if len(found) > 1 and "torch_dtype" not in checkpoint.config:
        raise CheckpointError(f"the experts of {weight.path} are stored as {' and '.join(found)}", "store them alike")
    return "BF16" if scheme.usual is None and dtype == "F32" else dtype


def forecast_of(checkpoint: Checkpoint, plan: Plan, out: Path) -> forecast.Forecast:
    """Sizes are those of the weight files, headers included."""
    from convert.mlx import SLICE
    from convert.shard_writer import header

    files = {
        name: len(header(tensors)) + sum(tensor.bytes for tensor in tensors) for name, tensors in plan.shards.items()
    }
    kinds = [_kind(each) for each in plan.weights]
    waiting = max(sum(tensor.bytes for tensor in each.stored[1:]) for each in plan.weights)
    tokenizer = checkpoint.folder / "tokenizer.json"
    memory = forecast.mlx_memory(SLICE, waiting, tokenizer.stat().st_size)
    notes = checkpoint.notes + tuple(f"left unquantised: {path}" for path in plan.left_whole)
    return forecast.Forecast(str(out), plan.scheme.name, files, forecast.counted(kinds), memory, notes)


def _kind(planned: PlannedWeight) -> str:
    packing = planned.packing
    if packing is None:
        return planned.dtype
    bits = f"{packing.bits} bit" if packing.mode == "affine" else packing.mode
    return f"{bits} in groups of {packing.group_size}"
