"""The MLX layout of a Qwen3: names, shapes, shards, config.json. Pure: imports no MLX.

The rules are those of mlx-lm (utils.py: make_shards, save_model, save_config; models/qwen3.py and qwen3_moe.py), so
that a folder holds what `mlx_lm.convert` would write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from convert.mlx_schemes import ROUTER, Packing, Scheme
from localqwen.formats import dtypes
from localqwen.formats.qwen3_config import Qwen3Config

#: mlx-lm's MAX_FILE_SIZE_GB, which it shifts by 30 bits.
MAX_SHARD = 5 << 30
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Weight:
    """One parameter of mlx-lm's model. `sources` are its names in the checkpoint: one, or all experts in order.
    `shape` has rows first, and experts before them."""

    path: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor of the output; `dtype` as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * dtypes.SAFETENSORS[self.dtype].block_bytes


def weights(config: Qwen3Config) -> list[Weight]:
    """All parameters, in the order in which mlx-lm's model lists them: it decides what goes into which shard."""
    result = [_single("model.embed_tokens", (config.vocabulary, config.hidden))]
    for layer in range(config.layers):
        result += _layer(config, f"model.layers.{layer}")
    result.append(_single("model.norm", (config.hidden,)))
    if not config.tied:
        result.append(_single("lm_head", (config.vocabulary, config.hidden)))
    return result


def _single(path: str, shape: tuple[int, ...]) -> Weight:
    return Weight(path, (f"{path}.weight",), shape)


def _layer(config: Qwen3Config, prefix: str) -> list[Weight]:
    hidden, head = config.hidden, config.head_size
    queries, keys = config.heads * head, config.kv_heads * head
    attention = [
        _single(f"{prefix}.self_attn.q_proj", (queries, hidden)),
        _single(f"{prefix}.self_attn.k_proj", (keys, hidden)),
        _single(f"{prefix}.self_attn.v_proj", (keys, hidden)),
        _single(f"{prefix}.self_attn.o_proj", (hidden, queries)),
        _single(f"{prefix}.self_attn.q_norm", (head,)),
        _single(f"{prefix}.self_attn.k_norm", (head,)),
    ]
    norms = [_single(f"{prefix}.{name}", (hidden,)) for name in ("input_layernorm", "post_attention_layernorm")]
    if config.experts:
        return [*attention, *norms, *_mixture(config, f"{prefix}.mlp")]
    return [*attention, *_feed_forward(config, f"{prefix}.mlp"), *norms]


def _feed_forward(config: Qwen3Config, prefix: str) -> list[Weight]:
    return [
        _single(f"{prefix}.gate_proj", (config.feed_forward, config.hidden)),
        _single(f"{prefix}.down_proj", (config.hidden, config.feed_forward)),
        _single(f"{prefix}.up_proj", (config.feed_forward, config.hidden)),
    ]


def _mixture(config: Qwen3Config, prefix: str) -> list[Weight]:
    up, down = (config.expert_feed_forward, config.hidden), (config.hidden, config.expert_feed_forward)
    stacks = [
        Weight(
            f"{prefix}.switch_mlp.{name}",
            tuple(f"{prefix}.experts.{expert}.{name}.weight" for expert in range(config.experts)),
            (config.experts, *shape),
        )
        for name, shape in (("gate_proj", up), ("up_proj", up), ("down_proj", down))
    ]
    return [_single(f"{prefix}.gate", (config.experts, config.hidden)), *stacks]


def stored(weight: Weight, packing: Packing | None, dtype: str) -> list[Stored]:
    """The tensors that a weight becomes; unpacked numbers are `dtype`. mx.quantize's own shapes and types."""
    name = f"{weight.path}.weight"
    if packing is None:
        return [Stored(name, dtype, weight.shape)]
    *outer, columns = weight.shape
    scales = (*outer, columns // packing.group_size)
    result = [Stored(name, "U32", (*outer, columns * packing.bits // 32))]
    if packing.mode != "affine":
        return [*result, Stored(f"{weight.path}.scales", "U8", scales)]
    return [*result, *(Stored(f"{weight.path}.{part}", dtype, scales) for part in ("scales", "biases"))]


def shards(tensors: Sequence[Stored], limit: int) -> list[list[Stored]]:
    """In order; a tensor larger than `limit` bytes has a file of its own."""
    result: list[list[Stored]] = []
    room = 0
    for tensor in tensors:
        if not result or tensor.bytes > room:
            result.append([])
            room = limit
        result[-1].append(tensor)
        room -= tensor.bytes
    return result


def shard_names(count: int) -> list[str]:
    return [WEIGHTS] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def index(files: Mapping[str, Sequence[Stored]], parameters: int) -> dict[str, Any]:
    """model.safetensors.index.json, which mlx-lm writes for a single file too."""
    homes = {tensor.name: file for file, tensors in files.items() for tensor in tensors}
    size = sum(tensor.bytes for tensors in files.values() for tensor in tensors)
    return {
        "metadata": {"total_size": size, "total_parameters": parameters},
        "weight_map": dict(sorted(homes.items())),
    }


def config_json(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], scheme: Scheme, packed: Mapping[str, Packing]
) -> dict[str, Any]:
    """The checkpoint's config.json with the end tokens of generation_config.json, and how `packed` weights are packed.

    What differs from the scheme's usual packing is listed by path; a recipe lists every weight.
    """
    result = {key: value for key, value in config.items() if key not in ("_name_or_path", "vision_config")}
    if generation_config.get("eos_token_id"):
        result["eos_token_id"] = generation_config["eos_token_id"]
    if scheme.usual is not None:
        quantization: dict[str, Any] = asdict(scheme.usual)
        for path, packing in packed.items():
            if scheme.recipe is not None:
                quantization[path] = asdict(packing)
            elif packing is ROUTER:
                quantization[path] = {"group_size": packing.group_size, "bits": packing.bits}
        result |= {"quantization": quantization, "quantization_config": quantization}
    return dict(sorted(result.items()))
