"""config.json of a Qwen3 checkpoint, dense or a mixture of experts, as the numbers that a conversion needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localqwen.errors import CheckpointError

#: transformers' architecture -> GGUF's.
ARCHITECTURES = {"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3moe"}
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp; also keeps a forged config from growing a list without end
MAX_EXPERTS = 512  # LLAMA_MAX_EXPERTS
_MAX_SIZE = 2**31 - 1
CONFIG_HINT = "compare config.json with the makers' original"


@dataclass(frozen=True)
class Config:
    """The sizes that shape the tensors, and what else the loader must know. Counts are elements, heads, tokens.

    A dense model has 0 `experts`; in a mixture every layer has them, and `feed_forward` shapes no tensor.
    """

    architecture: str
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
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0

    @property
    def gguf_architecture(self) -> str:
        return ARCHITECTURES[self.architecture]


def read_config(config: Mapping[str, Any]) -> Config:
    """Raises CheckpointError for another architecture, and for what this one would silently compute differently."""
    _check_supported(config)
    rope = _rope(config)
    result = Config(
        architecture=config["architectures"][0],
        layers=_count(config, "num_hidden_layers", MAX_LAYERS),
        hidden=_count(config, "hidden_size"),
        feed_forward=_count(config, "intermediate_size"),
        heads=_count(config, "num_attention_heads"),
        kv_heads=_count(config, "num_key_value_heads"),
        head_size=_count({"head_dim": 128, **config}, "head_dim"),  # transformers' Qwen3Config: 128 where not given
        vocabulary=_count(config, "vocab_size"),
        context=_count(config, "max_position_embeddings"),
        norm_epsilon=positive(config, "rms_norm_eps"),
        rope_theta=positive({**config, **rope}, "rope_theta"),
        tied=config.get("tie_word_embeddings") is True,
        yarn=_yarn(rope),
        **_experts(config),
    )
    if result.heads % result.kv_heads or result.head_size % 2:
        raise CheckpointError(
            f"config.json: {result.heads} heads on {result.kv_heads} key-value heads of {result.head_size} is no "
            "attention that Qwen3 can have",
            CONFIG_HINT,
        )
    return result


def _check_supported(config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if architectures not in [[known] for known in ARCHITECTURES]:
        found = ", ".join(map(str, architectures)) if isinstance(architectures, list) and architectures else "none"
        raise CheckpointError(
            f"the architecture is {found}; supported are {' and '.join(ARCHITECTURES)}",
            "give a checkpoint of Qwen3: 0.6B to 32B, 30B-A3B, 235B-A22B, or one made from them",
        )
    if config.get("attention_bias"):
        raise CheckpointError("config.json asks for attention_bias, which no Qwen3 has", CONFIG_HINT)
    if config.get("use_sliding_window") or "sliding_attention" in str(config.get("layer_types")):
        raise CheckpointError("config.json asks for a sliding window, which GGUF's qwen3 cannot express", CONFIG_HINT)
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json asks for hidden_act {config['hidden_act']!r}, Qwen3 has silu", CONFIG_HINT)


def _experts(config: Mapping[str, Any]) -> dict[str, int]:
    """Empty for a dense model. GGUF's qwen3moe has experts in every layer and normalises the weights of the chosen."""
    if ARCHITECTURES[config["architectures"][0]] == "qwen3":
        return {}
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise CheckpointError("config.json has layers without experts, which GGUF's qwen3moe cannot have", CONFIG_HINT)
    if config.get("norm_topk_prob") is not True:
        raise CheckpointError("config.json does not set norm_topk_prob, as every Qwen3 mixture does", CONFIG_HINT)
    experts = _count(config, "num_experts", MAX_EXPERTS)
    return {
        "experts": experts,
        "experts_used": _count(config, "num_experts_per_tok", experts),
        "expert_feed_forward": _count(config, "moe_intermediate_size"),
    }


def _count(config: Mapping[str, Any], key: str, limit: int = _MAX_SIZE) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value <= limit:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a number from 1 to {limit:,}", CONFIG_HINT)
    return value


def positive(config: Mapping[str, Any], key: str) -> float:
    """Raises CheckpointError."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CheckpointError(f"config.json: {key} is {value!r}, not a positive number", CONFIG_HINT)
    return float(value)


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Up to transformers 4 it was `rope_scaling`, null without scaling; since 5 `rope_parameters`, with theta in it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"config.json: rope_scaling is {rope!r}, not an object", CONFIG_HINT)
    return rope


def _yarn(rope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise CheckpointError(f"config.json: rope scaling {kind!r} is not supported, yarn is", CONFIG_HINT)
    positive(rope, "factor")
    _count(rope, "original_max_position_embeddings")
    return rope
