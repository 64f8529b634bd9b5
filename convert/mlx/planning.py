"""The plan of an MLX folder, complete before anything is written: each tensor, each file, config and index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from convert.gguf import architecture
from convert.mlx import layout
from convert.mlx.layout import Weight
from convert.mlx.schemes import Packing, Scheme, packing
from convert.output import shards
from convert.output.shards import Stored
from convert.sources.checkpoint import Checkpoint
from localqwen.errors import CheckpointError, ConversionError
from localqwen.formats import dtypes, qwen3_config


@dataclass(frozen=True)
class PlannedWeight:
    """A weight and its packing, None if it stays unquantized. Unpacked numbers are `dtype`, as in safetensors."""

    weight: Weight
    packing: Packing | None
    dtype: str

    @property
    def stored(self) -> list[Stored]:
        """The tensors that the weight becomes."""
        return layout.stored(self.weight, self.packing, self.dtype)

    @property
    def kind(self) -> str:
        """The storage in words: `BF16`, `4 bit in groups of 64`."""
        if self.packing is None:
            return self.dtype
        bits = f"{self.packing.bits} bit" if self.packing.mode == "affine" else self.packing.mode
        return f"{bits} in groups of {self.packing.group_size}"


@dataclass(frozen=True)
class Plan:
    """All files of an MLX folder: `shards` are the tensors by weight file, `config` and `index` the JSON files."""

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
        """The number of all tensors."""
        return sum(map(len, self.shards.values()))

    @property
    def left_whole(self) -> tuple[str, ...]:
        """The matrices that stay unquantized because the scheme's groups do not divide their rows."""
        if self.scheme.usual is None:
            return ()
        return tuple(each.weight.path for each in self.weights if each.packing is None and len(each.weight.shape) > 1)


def make_plan(checkpoint: Checkpoint, scheme: Scheme) -> Plan:
    """Plan the conversion of a checkpoint, after checking all of it except the values of its weights.

    Raise CheckpointError or ConversionError.
    """
    config = qwen3_config.parse(checkpoint.config)
    architecture.check_tensors(config, checkpoint.tensors)
    checkpoint.json("tokenizer.json")
    weights = tuple(
        PlannedWeight(
            weight, packing(scheme, weight.path, weight.shape, config.layers), _dtype(checkpoint, weight, scheme)
        )
        for weight in layout.weights(config)
    )
    packed = {each.weight.path: each.packing for each in weights if each.packing is not None}
    if scheme.usual is not None and not packed:
        raise ConversionError(
            f"groups of {scheme.usual.group_size} divide no weight of this checkpoint: nothing would be quantized",
            "choose a smaller --group-size",
        )
    files = shards.by_file([tensor for each in weights for tensor in each.stored])
    written_config = layout.config_json(checkpoint.config, checkpoint.generation_config, scheme, packed)
    index = shards.index(files, sum(prod(each.weight.shape) for each in weights))
    return Plan(scheme, weights, files, written_config, index)


def _dtype(checkpoint: Checkpoint, weight: Weight, scheme: Scheme) -> str:
    """Return the type of a weight's unpacked numbers: as in mlx-lm config.json's torch_dtype, otherwise the stored one.

    A plain copy is never wider than 16 bit.
    """
    declared = str(checkpoint.config.get("torch_dtype"))
    found = sorted({checkpoint.tensors[source].dtype for source in weight.sources})
    dtype = dtypes.TORCH[declared].name if declared in dtypes.TORCH else found[0]
    if len(found) > 1 and "torch_dtype" not in checkpoint.config:
        raise CheckpointError(f"the experts of {weight.path} are stored as {' and '.join(found)}", "store them alike")
    return "BF16" if scheme.usual is None and dtype == "F32" else dtype
