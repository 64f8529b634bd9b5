"""What is written of an existing GGUF file: its metadata as they are, its tensors in another type, or copied.

Types and order are those of llama.cpp's quantiser (llama-quant.cpp), so that the bytes are those of
`llama-quantize --allow-requantize`. Types of llama.cpp that are not written here are not read either.
"""

from __future__ import annotations

import re

from convert.gguf_file import Metadata, StoredTensor, entries
from convert.gguf_source import GgufSource
from convert.planning import Plan, PlannedTensor, cut, of_quantisation
from convert.quants import QUANTIZATIONS, Recipe, Sizes, tensor_types
from localqwen.errors import CheckpointError, ConversionError

LOSSY_TWICE = "made from a file that is quantised already: one made from the official checkpoint is better"
_ARCHITECTURES = ("qwen3", "qwen3moe")
_LAYER = re.compile(r"blk\.(\d+)\.")


def make_plan(source: GgufSource, recipe: Recipe, extra: Metadata, part_bytes: int | None, *, force: bool) -> Plan:
    """Without `force` only downwards: what a quantisation has dropped does not come back in a larger file.

    Raises CheckpointError, ConversionError, UsageError.
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
    last = of_quantisation(recipe) | extra
    keys = [entry for key, entry in source.entries.items() if key not in last]
    return Plan(recipe.quantization.name, cut([*keys, *entries(last)], planned, part_bytes))


def make_copy(source: GgufSource, part_bytes: int | None) -> Plan:
    """The same tensors in the same order: one file of many parts, or many of one."""
    planned = [
        PlannedTensor(source.sources(tensor), StoredTensor(tensor.name, tensor.shape, tensor.type))
        for tensor in source.stored.values()
    ]
    return Plan(quant_of(source) or "copy", cut(list(source.entries.values()), planned, part_bytes))


def quant_of(source: GgufSource) -> str | None:
    """The name of the quantisation that the file says it has, if it is one of those written here."""
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
        raise CheckpointError(f"{source.weight_files[0]} says {value!r} of {key}", "download or convert it again")
    return value


def _layer(name: str) -> int:
    """llama-model-loader.h: weight_name_comparer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _check_downwards(source: GgufSource, recipe: Recipe, size: int) -> None:
    quant, before = recipe.quantization.name, quant_of(source)
    if before == quant and not recipe.overrides:
        raise ConversionError(f"{source.weight_files[0].name} is {quant} already", "choose a smaller quantisation")
    if size > source.data_bytes:
        raise ConversionError(
            f"{quant} would be {size:,} bytes, larger than the {source.data_bytes:,} of {before or 'this file'}: "
            "what was dropped does not come back",
            "convert the official checkpoint to it instead; --force does it all the same",
        )


def lossy_twice(source: GgufSource) -> bool:
    """Whether the file is quantised already: a smaller one made of it is worse than one of the original weights."""
    return any(tensor.type.quantized for tensor in source.stored.values())
