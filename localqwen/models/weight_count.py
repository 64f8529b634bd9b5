"""How many weights a model has, and how many of them one token passes through, counted in its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from localqwen.errors import FormatError
from localqwen.formats import qwen3_config, safetensors
from localqwen.formats.gguf import GgufFile
from localqwen.formats.gguf_reader import Value
from localqwen.formats.qwen3_config import Qwen3Config
from localqwen.formats.tensors import SourceTensor

#: What stands beside quantized weights, by the end of its name: of MLX, of AWQ and GPTQ, of FP8.
_BESIDE = ("scales", "biases", "qzeros", "g_idx", "weight_scale_inv")
#: What the names of the experts' tensors have: official, stacked by MLX, stacked in GGUF.
_OF_EXPERTS = (".experts.", ".switch_mlp.", "_exps.")


@dataclass(frozen=True)
class WeightCount:
    """`active_parameters` are the weights that one token is multiplied with: of a mixture the experts that are chosen
    for it, and everything else. `active_share` is their share of the bytes, which experts and the rest may store in
    different types."""

    parameters: int
    active_parameters: int
    active_share: float


@dataclass(frozen=True)
class _Tensor:
    name: str
    parameters: int
    bytes: int


def of_gguf(parts: Sequence[GgufFile]) -> WeightCount:
    """Count a GGUF model from all its parts, open or closed. Raises FormatError."""
    values = parts[0].values
    architecture = values.get("general.architecture")
    used, experts = (values.get(f"{architecture}.{key}") for key in ("expert_used_count", "expert_count"))
    tensors = [_Tensor(each.name, prod(each.shape), each.bytes) for part in parts for each in part.tensors.values()]
    return _count(parts[0].path, tensors, used, experts)


def of_folder(folder: Path, config: Qwen3Config) -> WeightCount:
    """Count a checkpoint folder, official or quantized. Raises FormatError."""
    tensors = [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in _tensors(file, config)]
    return _count(folder, tensors, config.experts_used, config.experts)


def _tensors(file: Path, config: Qwen3Config) -> Iterator[_Tensor]:
    for tensor in safetensors.read_header(file).values():
        module, _, kind = tensor.name.rpartition(".")
        if module == "lm_head" and config.tied:
            continue  # the official 0.6B holds its output layer twice
        yield _Tensor(tensor.name, 0 if kind in _BESIDE else _weights(tensor, module, config), tensor.bytes)


def _weights(tensor: SourceTensor, module: str, config: Qwen3Config) -> int:
    """Return how many weights the tensor holds. Several small ones are packed into an integer of 32 bits."""
    elements = prod(tensor.shape)
    if tensor.dtype not in ("U32", "I32") or not config.quantization:
        return elements
    own = config.quantization.get(module)
    bits = (own if isinstance(own, dict) else config.quantization).get("bits")
    if type(bits) is not int or not 0 < bits <= 32:
        raise FormatError(f"{qwen3_config.FILE} says that {module} has weights of {bits!r} bits", qwen3_config.HINT)
    return elements * 32 // bits


def _count(path: Path, tensors: list[_Tensor], used: Value | None, experts: Value | None) -> WeightCount:
    """Count `used` of `experts` experts, which is what a token is given, and every other tensor fully."""
    parameters, size = sum(each.parameters for each in tensors), sum(each.bytes for each in tensors)
    of_experts = [each for each in tensors if any(mark in each.name for mark in _OF_EXPERTS)]
    if not of_experts:
        return WeightCount(parameters, parameters, 1.0)
    if type(used) is not int or type(experts) is not int or not 0 < used <= experts:
        raise FormatError(f"{path} says that {used!r} of {experts!r} experts are used", "download or convert it again")
    idle = sum(each.parameters for each in of_experts) * (experts - used) // experts
    idle_bytes = sum(each.bytes for each in of_experts) * (experts - used) / experts
    return WeightCount(parameters, parameters - idle, 1 - idle_bytes / size if size else 1.0)
