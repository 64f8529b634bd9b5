"""The plan of GGUF files, complete before anything is written: the head's bytes, each tensor, the size of each file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convert.gguf import architecture, tokenizer
from convert.gguf.head import Int32, Metadata, StoredTensor, UInt16, entries, head, padding
from convert.gguf.quants import Recipe, Sizes, tensor_types
from convert.output.forecast import counted
from convert.sources.checkpoint import Checkpoint
from localqwen.formats import qwen3_config
from localqwen.formats.dtypes import F32
from localqwen.formats.qwen3_config import Qwen3Config

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION of ggml.h: the layout of the quantized blocks


@dataclass(frozen=True)
class PlannedTensor:
    """A GGUF tensor, `stored`, and the names of the `sources` it is made of: one, or all experts in order."""

    sources: tuple[str, ...]
    stored: StoredTensor


@dataclass(frozen=True)
class PlannedFile:
    """A file of the output: its head, and the tensors that follow it."""

    head: bytes = field(repr=False)
    tensors: tuple[PlannedTensor, ...] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of the file; every tensor is padded, the last one too."""
        return len(self.head) + data_size([tensor.stored for tensor in self.tensors])


@dataclass(frozen=True)
class Plan:
    """All files of a conversion to the quantization `quant`."""

    quant: str
    files: tuple[PlannedFile, ...]

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """The tensors of all files, in order."""
        return tuple(tensor for file in self.files for tensor in file.tensors)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each type, such as {"Q4_K": 140, …}."""
        return counted(tensor.stored.type.name for tensor in self.tensors)


def data_size(tensors: Sequence[StoredTensor]) -> int:
    """Return the bytes of tensors with their padding, without a head."""
    return sum(tensor.size + padding(tensor.size) for tensor in tensors)


def make_plan(checkpoint: Checkpoint, recipe: Recipe, name: str, extra: Metadata, part_bytes: int | None) -> Plan:
    """Plan the conversion of a checkpoint, after checking all of it except the values of its weights.

    `extra` follows all other metadata. Raise CheckpointError or UsageError.
    """
    config = qwen3_config.parse(checkpoint.config)
    architecture.check_tensors(config, checkpoint.tensors)
    tensors = planned_tensors(config, recipe)
    metadata: Metadata = {
        "general.architecture": config.gguf_architecture,
        **_general(name, config, [tensor.stored for tensor in tensors]),
        **_sampling(checkpoint.generation_config),
        **architecture.metadata(config),
        **tokenizer.metadata(checkpoint, config.vocabulary),
        **of_quantization(recipe),
        **extra,
    }
    return Plan(recipe.quantization.name, cut(entries(metadata), tensors, part_bytes))


def of_quantization(recipe: Recipe) -> Metadata:
    """Return the keys of a quantization, which come last, as llama.cpp's quantizer puts them.

    With the same order, equal files have equal bytes.
    """
    return {
        "general.quantization_version": _QUANTIZATION_VERSION,
        "general.file_type": recipe.quantization.file_type,
    }


def cut(keys: Sequence[bytes], tensors: Sequence[PlannedTensor], part_bytes: int | None) -> tuple[PlannedFile, ...]:
    """Return one file, or parts with at most `part_bytes` of tensors each, split as by llama.cpp (tools/gguf-split).

    `keys` are encoded entries, which the first part gets.
    """
    if part_bytes is None:
        return (_file(keys, tensors),)
    parts: list[list[PlannedTensor]] = [[]]
    room = part_bytes
    for tensor in tensors:
        size = tensor.stored.size + padding(tensor.stored.size)
        if parts[-1] and size > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(tensor)
        room -= size
    result = []
    for number, part in enumerate(parts):
        of_split: Metadata = {
            "split.no": UInt16(number),
            "split.tensors.count": Int32(len(tensors)),
            "split.count": UInt16(len(parts)),
        }
        result.append(_file([*(keys if number == 0 else ()), *entries(of_split)], part))
    return tuple(result)


def _file(keys: Sequence[bytes], tensors: Sequence[PlannedTensor]) -> PlannedFile:
    return PlannedFile(head(keys, [tensor.stored for tensor in tensors]), tuple(tensors))


def planned_tensors(config: Qwen3Config, recipe: Recipe) -> list[PlannedTensor]:
    """Return all tensors of a model with the types that a recipe gives them."""
    tensors = architecture.tensors(config)
    sizes = Sizes(config.layers, config.experts, config.heads // config.kv_heads, config.tied)
    types = tensor_types(recipe, [(tensor.name, tensor.gguf_shape) for tensor in tensors], sizes)
    return [
        PlannedTensor(tensor.sources, StoredTensor(tensor.name, tensor.gguf_shape, kind or F32))
        for tensor, kind in zip(tensors, types, strict=True)
    ]


def _general(name: str, config: Qwen3Config, tensors: Sequence[StoredTensor]) -> Metadata:
    """Return the keys that a model's name implies, as llama.cpp's converter does: "Qwen3-4B" is a Qwen3 of size 4B."""
    import gguf

    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    experts = sum(math.prod(tensor.shape) for tensor in tensors if len(tensor.shape) == 3)
    shared, each = parameters - experts, experts // config.experts if config.experts else 0
    title, organization, basename, finetune, version, size = gguf.Metadata.get_model_id_components(name, parameters)
    values = {
        "general.type": "model",
        "general.name": gguf.Metadata.id_to_title(title or name),
        "general.version": version,
        "general.organization": organization,
        "general.finetune": finetune,
        "general.basename": basename,
        "general.size_label": size or gguf.size_label(parameters, shared, each, config.experts),
    }
    return {key: value for key, value in values.items() if value}


def _sampling(generation_config: Mapping[str, Any]) -> Metadata:
    """Return the recommended sampling of generation_config.json, as far as it is in range (gguf-py: metadata.py)."""
    result: Metadata = {}
    top_k = generation_config.get("top_k")
    if type(top_k) is int and 0 <= top_k < 2**31:
        result["general.sampling.top_k"] = Int32(top_k)
    for source, key in (
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("temperature", "temp"),
        ("repetition_penalty", "penalty_repeat"),
    ):
        value = generation_config.get(source)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6:
            result[f"general.sampling.{key}"] = float(value)
    return result
