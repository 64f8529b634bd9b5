"""The layout of a Qwen3 in mlx-lm: names, shapes, config.json. It imports no MLX.

The rules are those of mlx-lm (utils.py: save_model, save_config; models/qwen3.py and qwen3_moe.py), so that a folder
holds what `mlx_lm.convert` would write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from convert.mlx.schemes import ROUTER, Packing, Scheme
from convert.output.shards import Stored
from localqwen.formats.qwen3_config import Qwen3Config


@dataclass(frozen=True)
class Weight:
    """A parameter of mlx-lm's model. `sources` are its names in the checkpoint: one, or all experts in order.

    `shape` has rows first, and experts before them.
    """

    path: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]


def weights(config: Qwen3Config) -> list[Weight]:
    """Return all parameters in the order of mlx-lm's model, which decides the shard of each."""
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
    """Return the tensors that a weight becomes, with mx.quantize's shapes and types; unpacked numbers are `dtype`."""
    name = f"{weight.path}.weight"
    if packing is None:
        return [Stored(name, dtype, weight.shape)]
    *outer, columns = weight.shape
    scales = (*outer, columns // packing.group_size)
    result = [Stored(name, "U32", (*outer, columns * packing.bits // 32))]
    if packing.mode != "affine":
        return [*result, Stored(f"{weight.path}.scales", "U8", scales)]
    return [*result, *(Stored(f"{weight.path}.{part}", dtype, scales) for part in ("scales", "biases"))]


def config_json(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], scheme: Scheme, packed: Mapping[str, Packing]
) -> dict[str, Any]:
    """Return config.json: the checkpoint's, with the end tokens of generation_config.json and the packings.

    A weight in `packed` is listed by path if it differs from the scheme's usual packing; a recipe lists every weight.
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
