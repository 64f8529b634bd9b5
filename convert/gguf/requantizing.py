"""The plan of GGUF files whose source is a GGUF file: the same metadata, and the tensors in another type, or copied.

Types and order are those of llama.cpp's quantizer (llama-quant.cpp), so that the bytes are those of
`llama-quantize --allow-requantize`. Types of llama.cpp that this package does not write are not read either.
"""

from __future__ import annotations

import re

from convert.gguf.head import Metadata, StoredTensor, entries
from convert.gguf.planning import Plan, PlannedTensor, cut, of_quantization
from convert.gguf.quants import QUANTIZATIONS, Recipe, Sizes, tensor_types
from convert.sources.gguf import GgufSource
from localqwen.errors import CheckpointError, ConversionError

LOSSY_TWICE = "the source is quantized already: the official checkpoint gives a better result"
_ARCHITECTURES = ("qwen3", "qwen3moe")
_LAYER = re.compile(r"blk\.(\d+)\.")


def make_plan(source: GgufSource, recipe: Recipe, extra: Metadata, part_bytes: int | None, *, force: bool) -> Plan:
    """Plan the conversion of a GGUF file to a smaller quantization; to a larger one only with `force`.

    What a quantization has dropped does not come back. Raise CheckpointError, ConversionError or UsageError.
    """
    _check(source)
    tensors = sorted(source.stored.values(), key=lambda tensor: (_layer(tensor.name), tensor.name))
    types = tensor_types(recipe, [(tensor.name, tensor.shape) for tensor in tensors], _sizes(source))
    planned = [
        PlannedTensor(source.sources(tensor), StoredTensor(tensor.name, tensor.shape, kind or tensor.type))
        for tensor, kind in zip(tensors, types, strict=True)
    ]
    if not force:
        _check_downwards(source, recipe, sum(tensor.stored.size for tensor in planned))
    last = of_quantization(recipe) | extra
    keys = [entry for key, entry in source.entries.items() if key not in last]
    return Plan(recipe.quantization.name, cut([*keys, *entries(last)], planned, part_bytes))


def make_copy(source: GgufSource, part_bytes: int | None) -> Plan:
    """Plan a copy with the same tensors in the same order: one file from many parts, or many from one."""
    planned = [
        PlannedTensor(source.sources(tensor), StoredTensor(tensor.name, tensor.shape, tensor.type))
        for tensor in source.stored.values()
    ]
    return Plan(quant_of(source) or "copy", cut(list(source.entries.values()), planned, part_bytes))


def quant_of(source: GgufSource) -> str | None:
    """Return the name of the quantization that a file declares, None if it is not one that this package writes."""
    number = source.values.get("general.file_type")
    return next((name for name, each in QUANTIZATIONS.items() if each.file_type == number), None)


def _check(source: GgufSource) -> None:
    architecture = source.values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"the architecture is {architecture}; supported are {' and '.join(_ARCHITECTURES)}", "give a GGUF of Qwen3"
        )
    if not source.stored:
        raise CheckpointError(f"{source.weight_files[0]} has no tensors", "download it again")


def _sizes(source: GgufSource) -> Sizes:
    heads, shared = _count(source, "attention.head_count"), _count(source, "attention.head_count_kv")
    experts = _count(source, "expert_count") if source.values["general.architecture"] == "qwen3moe" else 0
    return Sizes(_count(source, "block_count"), experts, heads // shared, "output.weight" not in source.stored)


def _count(source: GgufSource, key: str) -> int:
    value = source.values.get(f"{source.values['general.architecture']}.{key}")
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{source.weight_files[0]} has {value!r} for {key}", "download or convert it again")
    return value


def _layer(name: str) -> int:
    """Return the layer of a tensor, -1 outside the layers (llama-model-loader.h: weight_name_comparer)."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _check_downwards(source: GgufSource, recipe: Recipe, size: int) -> None:
    quant, before = recipe.quantization.name, quant_of(source)
    if before == quant and not recipe.overrides:
        raise ConversionError(f"{source.weight_files[0].name} is {quant} already", "choose a smaller quantization")
    if size > source.data_bytes:
        raise ConversionError(
            f"{quant} would be {size:,} bytes, larger than the {source.data_bytes:,} of {before or 'this file'}: "
            "what was dropped does not come back",
            "convert the official checkpoint to it instead; --force converts anyway",
        )


def lossy_twice(source: GgufSource) -> bool:
    """Return whether a file is quantized already, so that a result from the original weights would be better."""
    return any(tensor.type.quantized for tensor in source.stored.values())
