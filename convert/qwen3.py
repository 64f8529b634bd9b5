"""The architecture: which tensors a dense Qwen3 checkpoint has, what they are called in GGUF, what the config says.

Names and keys are those of llama.cpp (gguf-py: tensor_mapping.py, constants.py; converter: conversion/qwen.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convert.gguf_file import Metadata
from convert.safetensors import NUMPY_TYPES, SourceTensor
from localqwen.errors import CheckpointError

ARCHITECTURE = "qwen3"
_SUPPORTED = "Qwen3ForCausalLM"
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp; also keeps a forged config from growing a list without end
_MAX_SIZE = 2**31 - 1
_CONFIG_HINT = "compare config.json with the makers' original"


@dataclass(frozen=True)
class Config:
    """The sizes that shape the tensors, and what else the loader must know. Counts are elements, heads, tokens."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_theta: float
    tied: bool
    yarn: Mapping[str, Any] | None


@dataclass(frozen=True)
class Tensor:
    """`source` is the name in the checkpoint, `name` the one in GGUF; `shape` has rows first in both."""

    source: str
    name: str
    shape: tuple[int, ...]


def read_config(config: Mapping[str, Any]) -> Config:
    """Raises CheckpointError for another architecture, and for what this one would silently compute differently."""
    _check_supported(config)
    rope = _rope(config)
    result = Config(
        layers=_count(config, "num_hidden_layers", _MAX_LAYERS),
        hidden=_count(config, "hidden_size"),
        feed_forward=_count(config, "intermediate_size"),
        heads=_count(config, "num_attention_heads"),
        kv_heads=_count(config, "num_key_value_heads"),
        head_size=_count({"head_dim": 128, **config}, "head_dim"),  # transformers' Qwen3Config: 128 where not given
        vocabulary=_count(config, "vocab_size"),
        context=_count(config, "max_position_embeddings"),
        norm_epsilon=_positive(config, "rms_norm_eps"),
        rope_theta=_positive({**config, **rope}, "rope_theta"),
        tied=config.get("tie_word_embeddings") is True,
        yarn=_yarn(rope),
    )
    if result.heads % result.kv_heads or result.head_size % 2:
        raise CheckpointError(
            f"config.json: {result.heads} heads on {result.kv_heads} key-value heads of {result.head_size} is no "
            "attention that Qwen3 can have",
            _CONFIG_HINT,
        )
    return result


def _check_supported(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if architectures != [_SUPPORTED]:
        found = ", ".join(map(str, architectures)) if isinstance(architectures, list) and architectures else "none"
        raise CheckpointError(
            f"the architecture is {found}; supported is {_SUPPORTED}, the dense Qwen3 models",
            "dense Qwen3 is 0.6B, 1.7B, 4B, 8B, 14B and 32B",
        )
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, Mapping) else "unknown"
        raise CheckpointError(f"the weights are already quantised ({method})", "convert the original bf16 checkpoint")
    if config.get("attention_bias"):
        raise CheckpointError("config.json asks for attention_bias, which no Qwen3 has", _CONFIG_HINT)
    if config.get("use_sliding_window") or "sliding_attention" in str(config.get("layer_types")):
        raise CheckpointError("config.json asks for a sliding window, which GGUF's qwen3 cannot express", _CONFIG_HINT)
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json asks for hidden_act {config['hidden_act']!r}, Qwen3 has silu", _CONFIG_HINT)


def _count(config: Mapping[str, Any], key: str, limit: int = _MAX_SIZE) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= limit:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a number from 1 to {limit:,}", _CONFIG_HINT)
    return value


def _positive(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a positive number", _CONFIG_HINT)
    return float(value)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Up to transformers 4 it was `rope_scaling`, null without scaling; since 5 `rope_parameters`, with theta in it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: rope_scaling is {rope!r}, not an object", _CONFIG_HINT)
    return rope


def _yarn(rope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise CheckpointError(f"config.json: rope scaling {kind!r} is not supported, yarn is", _CONFIG_HINT)
    _positive(rope, "factor")
    _count(rope, "original_max_position_embeddings")
    return rope


def tensors(config: Config) -> list[Tensor]:
    """All tensors of the model, in the order in which llama.cpp's quantiser writes them: by layer, then by name.

    (llama-model-loader.h: weight_name_comparer.) What stands outside the layers comes first.
    """
    outside = [
        Tensor("model.norm.weight", "output_norm.weight", (config.hidden,)),
        Tensor("model.embed_tokens.weight", "token_embd.weight", (config.vocabulary, config.hidden)),
    ]
    if not config.tied:
        outside.insert(0, Tensor("lm_head.weight", "output.weight", (config.vocabulary, config.hidden)))
    return outside + [tensor for layer in range(config.layers) for tensor in _layer(config, layer)]


def _layer(config: Config, layer: int) -> list[Tensor]:
    hidden, feed_forward, head = config.hidden, config.feed_forward, config.head_size
    queries, keys = config.heads * head, config.kv_heads * head
    rows: list[tuple[str, str, tuple[int, ...]]] = [
        ("self_attn.k_proj", "attn_k", (keys, hidden)),
        ("self_attn.k_norm", "attn_k_norm", (head,)),
        ("input_layernorm", "attn_norm", (hidden,)),
        ("self_attn.o_proj", "attn_output", (hidden, queries)),
        ("self_attn.q_proj", "attn_q", (queries, hidden)),
        ("self_attn.q_norm", "attn_q_norm", (head,)),
        ("self_attn.v_proj", "attn_v", (keys, hidden)),
        ("mlp.down_proj", "ffn_down", (hidden, feed_forward)),
        ("mlp.gate_proj", "ffn_gate", (feed_forward, hidden)),
        ("post_attention_layernorm", "ffn_norm", (hidden,)),
        ("mlp.up_proj", "ffn_up", (feed_forward, hidden)),
    ]
    return [
        Tensor(f"model.layers.{layer}.{hf}.weight", f"blk.{layer}.{gguf}.weight", shape) for hf, gguf, shape in rows
    ]


def check_tensors(config: Config, found: Mapping[str, SourceTensor]) -> None:
    """Raises CheckpointError, naming the tensors, unless the checkpoint holds exactly what the config describes."""
    expected = {tensor.source: tensor for tensor in tensors(config)}
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"{len(missing)} tensors are missing: {_few(missing)}", "download the checkpoint again")
    if extra := [name for name in found if name not in expected and not _ignored(config, name)]:
        raise CheckpointError(
            f"{len(extra)} tensors do not belong to a {_SUPPORTED} of {config.layers} layers: {_few(extra)}",
            _CONFIG_HINT,
        )
    for name, tensor in expected.items():
        source = found[name]
        if source.shape != tensor.shape:
            raise CheckpointError(
                f"{name} has shape {list(source.shape)}, config.json makes it {list(tensor.shape)}", _CONFIG_HINT
            )
        if source.dtype not in NUMPY_TYPES:
            raise CheckpointError(
                f"{name} is stored as {source.dtype}; supported are {', '.join(NUMPY_TYPES)}",
                "convert the original bf16 checkpoint",
            )


def _ignored(config: Config, name: str) -> bool:
    """Tied checkpoints may carry the embeddings once more as lm_head; old ones carry the rotary table."""
    return (config.tied and name == "lm_head.weight") or name.endswith(".rotary_emb.inv_freq")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def metadata(config: Config) -> Metadata:
    """The `qwen3.*` keys. Counts are written as uint32, rms epsilon and frequencies as float32."""
    values: Metadata = {
        "block_count": config.layers,
        "context_length": config.context,
        "embedding_length": config.hidden,
        "feed_forward_length": config.feed_forward,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        **_scaling(config.yarn),
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
    }
    return {f"{ARCHITECTURE}.{key}": value for key, value in values.items()}


def _scaling(yarn: Mapping[str, Any] | None) -> Metadata:
    """What beyond factor and original length a config rarely gives has the GGUF key of llama.cpp's converter."""
    if yarn is None:
        return {}
    values: Metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(yarn["factor"]),
        "rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
    }
    for source, key in (
        ("extrapolation_factor", "yarn_ext_factor"),
        ("attention_factor", "yarn_attn_factor"),
        ("beta_fast", "yarn_beta_fast"),
        ("beta_slow", "yarn_beta_slow"),
    ):
        if yarn.get(source) is not None:
            values[f"rope.scaling.{key}"] = _positive(yarn, source)
    return values
