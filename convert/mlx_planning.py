"""What a conversion to MLX will write, known before it writes anything: each tensor, each file, config and index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from convert import mlx_layout, qwen3
from convert.checkpoint import Checkpoint
from convert.config import read_config
from convert.mlx_layout import Stored, Weight
from convert.mlx_schemes import Packing, Scheme, packing
from localqwen.errors import CheckpointError, ConversionError

_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


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
    def left_whole(self) -> tuple[str, ...]:
        """The matrices that a quantisation leaves as they are, because its groups do not divide their rows."""
        if self.scheme.usual is None:
            return ()
        return tuple(each.weight.path for each in self.weights if each.packing is None and len(each.weight.shape) > 1)


def make_plan(checkpoint: Checkpoint, scheme: Scheme) -> Plan:
    """Checks the whole checkpoint except the weights' values. Raises CheckpointError, ConversionError."""
    config = read_config(checkpoint.config)
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
    found = sorted({checkpoint.tensors[source].dtype for source in weight.sources})
    dtype = _TYPES.get(str(checkpoint.config.get("torch_dtype")), found[0])
    if len(found) > 1 and "torch_dtype" not in checkpoint.config:
        raise CheckpointError(f"the experts of {weight.path} are stored as {' and '.join(found)}", "store them alike")
    return "BF16" if scheme.usual is None and dtype == "F32" else dtype
