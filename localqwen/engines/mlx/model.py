"""A Qwen3 checkpoint in MLX: loading its weights, and one pass over them for many runs at once.

The weights, their quantized forms and the mixture of experts are mlx_lm's; the pass is ours. mlx_lm's own batch pads
all runs to one length and copies their keys and values whenever one comes or goes, computes a token ahead of the one
it gives, and has no batch of quantized caches. Here the ids of all runs, slices of prompts and single tokens alike,
stand in one row: every matrix product is shared, and only attention goes run by run, each over its own cache, with
the operations that it would have alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localqwen.errors import EngineError, EngineUnavailable
from localqwen.formats import qwen3_config
from localqwen.formats.qwen3_config import Qwen3Config

try:
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.models.base import scaled_dot_product_attention
    from mlx_lm.models.cache import KVCache, QuantizedKVCache
    from mlx_lm.models.rope_utils import initialize_rope
    from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear
    from mlx_lm.utils import load_model
except (ImportError, OSError) as exc:
    raise EngineUnavailable(f"MLX does not load: {exc}", "pip install --force-reinstall mlx-lm") from exc

#: Elements of a head that share a scale in a quantized cache; a head of Qwen3 has 128.
KV_GROUP = 64

#: One run's keys and values: a cache per layer.
Caches = list[Any]
Logits = mx.array


class Weights:
    """The model of a checkpoint folder, bf16 or quantized for MLX. Raises EngineError if it cannot be loaded."""

    def __init__(self, folder: Path, *, rope: Mapping[str, Any] | None = None, adapter: Path | None = None) -> None:
        """`rope` scales the rotary positions and is written as in config.json. `adapter` is the file of a LoRA adapter
        in MLX's layout, read now."""
        try:
            self.model: Any = load_model(folder, model_config=_arguments(qwen3_config.read(folder)))[0]
            if rope is not None:
                _scale_positions(self.model, rope)
            if adapter is not None:
                _adapt(self.model, adapter)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as exc:
            raise EngineError(f"MLX cannot load {folder}: {exc}", "download or convert it again") from exc
        self.bytes: int = sum(array.nbytes for _, array in tree_flatten(self.model.parameters()))
        self.rows: int = self.model.args.vocab_size

    def quantize(self, *, bits: int, group_size: int) -> None:
        """Quantize in memory by the rule of MLX's own folders: what divides by the group, and a router to 8 bits."""
        chosen = getattr(self.model, "quant_predicate", lambda _path, _module: True)

        def predicate(path: str, module: Any) -> Any:
            return (
                hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size == 0 and chosen(path, module)
            )

        nn.quantize(self.model, group_size=group_size, bits=bits, class_predicate=predicate)

    def new_caches(self, kv_quant: int | None = None) -> Caches:
        """Return empty caches in the type of the activations, or quantized to 8 or 4 bits."""
        if kv_quant is None:
            return [KVCache() for _ in self.model.layers]
        group = min(KV_GROUP, self.model.args.head_dim)
        return [QuantizedKVCache(group_size=group, bits=kv_quant) for _ in self.model.layers]

    def forward(self, rows: Sequence[tuple[Sequence[int], Caches]], wanted: Sequence[int]) -> mx.array:
        """Run the ids of every row behind what its caches have, and append to them.

        `wanted` are positions among all ids, the rows one after another. Return their logits, float32, shape
        (wanted, vocabulary), computed; so are the caches. Raise EngineError if MLX fails.
        """
        ids = [token for tokens, _ in rows for token in tokens]
        hidden = self.model.model.embed_tokens(mx.array([ids]))
        for number, layer in enumerate(self.model.layers):
            parts = [(len(tokens), caches[number]) for tokens, caches in rows]
            hidden = hidden + _attention(layer.self_attn, layer.input_layernorm(hidden), parts)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits = self._head(hidden[0, mx.array(list(wanted))]) if wanted else mx.zeros((0, self.rows))
        try:
            mx.eval(logits, [(cache.keys, cache.values) for _, caches in rows for cache in caches])
        except (RuntimeError, MemoryError) as exc:
            raise EngineError(
                f"MLX failed on a pass of {len(ids)} tokens: {exc}", "a smaller context or model"
            ) from exc
        return logits

    def _head(self, hidden: mx.array) -> mx.array:
        normed = self.model.model.norm(hidden)
        tied = self.model.args.tie_word_embeddings
        logits: mx.array = self.model.model.embed_tokens.as_linear(normed) if tied else self.model.lm_head(normed)
        return logits.astype(mx.float32)


def _arguments(config: Qwen3Config) -> dict[str, Any]:
    """Return what mlx_lm takes from config.json by names that not every config.json has, or has null."""
    mixture = {"num_experts": config.experts, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return {
        "model_type": "qwen3_moe" if config.experts else "qwen3",
        "head_dim": config.head_size,
        "num_key_value_heads": config.kv_heads,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied,
        **(mixture if config.experts else {}),
    }


def _scale_positions(model: Any, rope: Mapping[str, Any]) -> None:
    """Scale by mlx_lm's own means. It obeys config.json for dense models and ignores it for mixtures (qwen3_moe.py)."""
    for layer in model.layers:
        scaled = initialize_rope(
            model.args.head_dim,
            base=model.args.rope_theta,
            traditional=False,
            scaling_config=dict(rope),
            max_position_embeddings=model.args.max_position_embeddings,
        )
        if rope.get("attention_factor") is not None:
            scaled.mscale = rope["attention_factor"]
        layer.self_attn.rope = scaled


def _adapt(model: Any, file: Path) -> None:
    """Wrap the layers that the adapter changes. That is exact for quantized weights too: nothing is rounded to them."""
    matrices: Any = mx.load(str(file))
    for path in dict.fromkeys(name.rpartition(".")[0] for name in matrices):
        down, up = matrices[f"{path}.lora_a"], matrices[f"{path}.lora_b"]
        holder, _, name = path.rpartition(".")
        module = functools.reduce(_part, holder.split("."), model) if holder else model
        kind = LoRALinear if down.ndim == 2 else LoRASwitchLinear
        wrapped = kind.from_base(getattr(module, name), r=1, scale=1.0)
        wrapped.lora_a, wrapped.lora_b = down, up
        setattr(module, name, wrapped)
        mx.eval(down, up)  # the file goes away


def _part(module: Any, name: str) -> Any:
    return module[int(name)] if name.isdigit() else getattr(module, name)


def _attention(attention: Any, hidden: mx.array, parts: Sequence[tuple[int, Any]]) -> mx.array:
    """Return the attention of several runs. `parts` are the length and the cache of each; together they make up
    `hidden`, shape (1, ids, width), which is also the shape of the result."""
    queries = _heads(attention.q_norm, attention.q_proj(hidden), attention.n_heads)
    keys = _heads(attention.k_norm, attention.k_proj(hidden), attention.n_kv_heads)
    values = _heads(None, attention.v_proj(hidden), attention.n_kv_heads)
    results, begin = [], 0
    for length, cache in parts:
        own = slice(begin, begin + length)
        begin += length
        mask = cache.make_mask(length, return_array=False, window_size=None)
        turned = attention.rope(queries[:, :, own], offset=cache.offset)
        known = cache.update_and_fetch(attention.rope(keys[:, :, own], offset=cache.offset), values[:, :, own])
        results.append(scaled_dot_product_attention(turned, *known, cache=cache, scale=attention.scale, mask=mask))
    joined = mx.concatenate(results, axis=2) if len(results) > 1 else results[0]
    mixed: mx.array = attention.o_proj(joined.transpose(0, 2, 1, 3).reshape(1, hidden.shape[1], -1))
    return mixed


def _heads(norm: Any, projected: mx.array, heads: int) -> mx.array:
    """Return (1, ids, heads * length) as (1, heads, ids, length), normalized per head where Qwen3 does so."""
    split = projected.reshape(1, projected.shape[1], heads, -1)
    return (norm(split) if norm else split).transpose(0, 2, 1, 3)


def trim(caches: Caches, length: int) -> int:
    """Forget what is behind `length` positions; return how many are left."""
    for cache in caches:
        cache.trim(max(0, cache.offset - length))
    return int(caches[0].offset)


def copy(caches: Caches, empty: Caches, length: int) -> Caches:
    """Return `empty` with a copy of the first `length` positions of a run's caches; both may grow on their own."""
    for source, target in zip(caches, empty, strict=True):
        target.keys, target.values = tree_map(
            lambda array: mx.contiguous(array[..., :length, :]), (source.keys, source.values)
        )
        target.offset = length
    mx.eval([(cache.keys, cache.values) for cache in empty])
    return empty


def device() -> str:
    """Return where MLX computes, in words."""
    return "GPU" if mx.default_device() == mx.Device(mx.gpu) else "CPU build of MLX"


def use_memory(limit: int) -> int:
    """Return how many bytes weights, keys and values may take: what Metal recommends, `limit` without Metal.

    On Metal, tell it to keep as much in memory: what macOS has compressed or swapped is slow to read.
    """
    if not mx.metal.is_available():
        return limit
    recommended = int(mx.device_info()["max_recommended_working_set_size"])
    mx.set_wired_limit(recommended)
    return recommended


def give_back() -> None:
    """Hand the buffers that MLX keeps for reuse to the system."""
    mx.clear_cache()
