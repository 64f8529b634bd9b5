"""Qwen3's tensors under the names of the checkpoint and of GGUF, and the GGUF keys of the architecture.

Names and keys are those of llama.cpp (gguf-py: tensor_mapping.py, constants.py; converter: conversion/qwen.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convert.gguf.head import Metadata
from localqwen.errors import CheckpointError
from localqwen.formats.dtypes import FLOATS
from localqwen.formats.qwen3_config import HINT, Qwen3Config, positive
from localqwen.formats.tensors import SourceTensor

#: Name in a layer of the checkpoint, name in a layer of GGUF, shape.
Row = tuple[str, str, tuple[int, ...]]
#: Stands in a name for every expert in turn.
EACH = "experts.*"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model: `name` in GGUF, `sources` in the checkpoint: one, or one per expert, which are stacked.

    `shape` is that of each source, rows first.
    """

    sources: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    stacked: bool = False

    @property
    def gguf_shape(self) -> tuple[int, ...]:
        """The shape in GGUF, rows first, and experts before them."""
        return (len(self.sources), *self.shape) if self.stacked else self.shape


def tensors(config: Qwen3Config) -> list[Tensor]:
    """Return all tensors of a model, in the order in which llama.cpp's quantizer writes them: by layer, then by name.

    Those outside the layers come first (llama-model-loader.h: weight_name_comparer).
    """
    outside = [
        Tensor(("model.norm.weight",), "output_norm.weight", (config.hidden,)),
        Tensor(("model.embed_tokens.weight",), "token_embd.weight", (config.vocabulary, config.hidden)),
    ]
    if not config.tied:
        outside.insert(0, Tensor(("lm_head.weight",), "output.weight", (config.vocabulary, config.hidden)))
    return outside + [tensor for layer in range(config.layers) for tensor in _layer(config, layer)]


def _layer(config: Qwen3Config, layer: int) -> list[Tensor]:
    hidden, head = config.hidden, config.head_size
    queries, keys = config.heads * head, config.kv_heads * head
    rows: list[Row] = [
        ("self_attn.k_proj", "attn_k", (keys, hidden)),
        ("self_attn.k_norm", "attn_k_norm", (head,)),
        ("input_layernorm", "attn_norm", (hidden,)),
        ("self_attn.o_proj", "attn_output", (hidden, queries)),
        ("self_attn.q_proj", "attn_q", (queries, hidden)),
        ("self_attn.q_norm", "attn_q_norm", (head,)),
        ("self_attn.v_proj", "attn_v", (keys, hidden)),
        *(_feed_forward(config) if not config.experts else _mixture(config)),
    ]
    return [_tensor(config, layer, *row) for row in rows]


def _feed_forward(config: Qwen3Config) -> list[Row]:
    hidden, feed_forward = config.hidden, config.feed_forward
    return [
        ("mlp.down_proj", "ffn_down", (hidden, feed_forward)),
        ("mlp.gate_proj", "ffn_gate", (feed_forward, hidden)),
        ("post_attention_layernorm", "ffn_norm", (hidden,)),
        ("mlp.up_proj", "ffn_up", (feed_forward, hidden)),
    ]


def _mixture(config: Qwen3Config) -> list[Row]:
    hidden, feed_forward = config.hidden, config.expert_feed_forward
    return [
        (f"mlp.{EACH}.down_proj", "ffn_down_exps", (hidden, feed_forward)),
        (f"mlp.{EACH}.gate_proj", "ffn_gate_exps", (feed_forward, hidden)),
        ("mlp.gate", "ffn_gate_inp", (config.experts, hidden)),
        ("post_attention_layernorm", "ffn_norm", (hidden,)),
        (f"mlp.{EACH}.up_proj", "ffn_up_exps", (feed_forward, hidden)),
    ]


def _tensor(config: Qwen3Config, layer: int, hf: str, gguf: str, shape: tuple[int, ...]) -> Tensor:
    source = f"model.layers.{layer}.{hf}.weight"
    each = (
        [source.replace(EACH, f"experts.{expert}") for expert in range(config.experts)] if EACH in source else [source]
    )
    return Tensor(tuple(each), f"blk.{layer}.{gguf}.weight", shape, stacked=EACH in source)


def check_tensors(config: Qwen3Config, found: Mapping[str, SourceTensor]) -> None:
    """Raise CheckpointError, with the names, unless a checkpoint holds exactly the tensors of its config."""
    expected = {source: tensor for tensor in tensors(config) for source in tensor.sources}
    if missing := [name for name in expected if name not in found]:
        raise CheckpointError(f"{len(missing)} tensors are missing: {_few(missing)}", "download the checkpoint again")
    if extra := [name for name in found if name not in expected and not _ignored(config, name)]:
        raise CheckpointError(
            f"{len(extra)} tensors do not belong to a {config.architecture} of {config.layers} layers: {_few(extra)}",
            HINT,
        )
    for name, tensor in expected.items():
        source = found[name]
        if source.shape != tensor.shape:
            raise CheckpointError(
                f"{name} has shape {list(source.shape)}, config.json makes it {list(tensor.shape)}", HINT
            )
        if source.dtype not in FLOATS:
            raise CheckpointError(
                f"{name} is stored as {source.dtype}; supported are {', '.join(FLOATS)}",
                "convert the original bf16 checkpoint",
            )


def _ignored(config: Qwen3Config, name: str) -> bool:
    """Return whether a surplus tensor is harmless: embeddings repeated as a tied lm_head, an old rotary table."""
    return (config.tied and name == "lm_head.weight") or name.endswith(".rotary_emb.inv_freq")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def metadata(config: Qwen3Config) -> Metadata:
    """Return the GGUF keys of the architecture. Counts are uint32, the RMS epsilon and frequencies float32."""
    values: Metadata = {
        "block_count": config.layers,
        "context_length": config.context,
        "embedding_length": config.hidden,
        "feed_forward_length": config.feed_forward,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        **_scaling(config),
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        **_expert_counts(config),
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
    }
    if config.experts:
        values["expert_feed_forward_length"] = config.expert_feed_forward
    return {f"{config.gguf_architecture}.{key}": value for key, value in values.items()}


def _expert_counts(config: Qwen3Config) -> Metadata:
    return {"expert_count": config.experts, "expert_used_count": config.experts_used} if config.experts else {}


def _scaling(config: Qwen3Config) -> Metadata:
    """Return the keys of YaRN. Rare fields of a config get the keys that llama.cpp's converter gives them."""
    scaling, rope = config.scaling, config.rope
    if scaling is None or rope is None:
        return {}
    if scaling.kind != "yarn":
        raise CheckpointError(f"config.json: rope scaling {scaling.kind!r} is not converted, yarn is", HINT)
    values: Metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": scaling.factor,
        "rope.scaling.original_context_length": scaling.original,
    }
    for source, key in (
        ("extrapolation_factor", "yarn_ext_factor"),
        ("attention_factor", "yarn_attn_factor"),
        ("beta_fast", "yarn_beta_fast"),
        ("beta_slow", "yarn_beta_slow"),
    ):
        if rope.get(source) is not None:
            values[f"rope.scaling.{key}"] = positive(rope, source)
    return values
