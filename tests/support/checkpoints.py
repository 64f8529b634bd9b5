"""Random Qwen3 checkpoints in the official layout, small enough for tests: config, tokenizer, safetensors by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = ["t h", "th e", "Ġ the", "i n", "e r", "Ġ a", "a n", "o n", "r e", "Ġa n", "Ċ Ċ", "h e"]
#: Qwen3's own, in its order: text and whether it is marked special.
ADDED_TOKENS = [
    ("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True), ("<|box_start|>", True), ("<|box_end|>", True), ("<|quad_start|>", True),
    ("<|quad_end|>", True), ("<|vision_start|>", True), ("<|vision_end|>", True), ("<|vision_pad|>", True),
    ("<|image_pad|>", True), ("<|video_pad|>", True), ("<tool_call>", False), ("</tool_call>", False),
    ("<|fim_prefix|>", False), ("<|fim_middle|>", False), ("<|fim_suffix|>", False), ("<|fim_pad|>", False),
    ("<|repo_name|>", False), ("<|file_sep|>", False), ("<tool_response>", False), ("</tool_response>", False),
    ("<think>", False), ("</think>", False),
]  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, dense without `experts`; `rows` of embeddings are more than the tokenizer has tokens."""

    hidden: int = 256
    feed_forward: int = 512
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rows: int = 320
    tied: bool = True
    experts: int = 0
    experts_used: int = 2
    expert_feed_forward: int = 256


#: Layers enough for every branch of "more bits for some layers"; four heads share keys, which some rules ask too.
LAYERED = {
    "dense, 17 layers": Shape(feed_forward=256, layers=17, kv_heads=1),
    "three experts, 9 layers": Shape(layers=9, tied=False, experts=3),
}


def make_checkpoint(
    folder: Path,
    shape: Shape = Shape(),
    *,
    dtype: str = "BF16",
    shards: int = 1,
    duplicate_head: bool = False,
    seed: int = 1,
) -> Path:
    """Writes a whole checkpoint with random weights into `folder`, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config(shape))
    write_json(folder / "generation_config.json", generation_config())
    write_json(folder / "tokenizer.json", tokenizer())
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_weights(folder, weights(shape, dtype, duplicate_head=duplicate_head, seed=seed), dtype, shards)
    return folder


def config(shape: Shape) -> dict[str, Any]:
    return _dense_config(shape) | (_mixture_config(shape) if shape.experts else {})


def _mixture_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": shape.expert_feed_forward,
        "norm_topk_prob": True,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.experts_used,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def _dense_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": 4096,
        "model_type": "qwen3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": shape.rows,
    }


def generation_config() -> dict[str, Any]:
    ends = [token_id("<|im_end|>"), token_id("<|endoftext|>")]
    return {"do_sample": True, "eos_token_id": ends, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def byte_tokens() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE: printable bytes as they are, others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def vocabulary() -> dict[str, int]:
    return {token: number for number, token in enumerate([*byte_tokens(), *(m.replace(" ", "") for m in MERGES)])}


def token_id(added: str) -> int:
    return len(vocabulary()) + [text for text, _ in ADDED_TOKENS].index(added)


def tokenizer(*, merges_as_pairs: bool = True) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": token_id(text), "content": text, **flags, "special": special} for text, special in ADDED_TOKENS]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary(),
            "merges": [merge.split(" ") if merges_as_pairs else merge for merge in MERGES],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "Qwen2Tokenizer",
    }


def weights(
    shape: Shape, dtype: str = "BF16", *, duplicate_head: bool = False, seed: int = 1
) -> dict[str, NDArray[Any]]:
    """All tensors by their name in the checkpoint, normally distributed, norms around 1; bf16 as its uint16 bits."""
    random = np.random.default_rng(seed)

    def make(rows: int, *columns: int) -> NDArray[Any]:
        values = random.standard_normal((rows, *columns), np.float32)
        return as_dtype(values * 0.05 if columns else 1 + values * 0.1, dtype)

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    result = {"model.embed_tokens.weight": make(shape.rows, shape.hidden)}
    for number in range(shape.layers):
        layer = f"model.layers.{number}"
        result |= {
            f"{layer}.self_attn.q_proj.weight": make(queries, shape.hidden),
            f"{layer}.self_attn.k_proj.weight": make(keys, shape.hidden),
            f"{layer}.self_attn.v_proj.weight": make(keys, shape.hidden),
            f"{layer}.self_attn.o_proj.weight": make(shape.hidden, queries),
            f"{layer}.self_attn.q_norm.weight": make(shape.head_dim),
            f"{layer}.self_attn.k_norm.weight": make(shape.head_dim),
            **_feed_forward(shape, f"{layer}.mlp", make),
            f"{layer}.input_layernorm.weight": make(shape.hidden),
            f"{layer}.post_attention_layernorm.weight": make(shape.hidden),
        }
    result["model.norm.weight"] = make(shape.hidden)
    if not shape.tied:
        result["lm_head.weight"] = make(shape.rows, shape.hidden)
    elif duplicate_head:
        result["lm_head.weight"] = result["model.embed_tokens.weight"]
    return result


def _feed_forward(shape: Shape, prefix: str, make: Callable[..., NDArray[Any]]) -> dict[str, NDArray[Any]]:
    def one(prefix: str, width: int) -> dict[str, NDArray[Any]]:
        return {
            f"{prefix}.gate_proj.weight": make(width, shape.hidden),
            f"{prefix}.up_proj.weight": make(width, shape.hidden),
            f"{prefix}.down_proj.weight": make(shape.hidden, width),
        }

    if not shape.experts:
        return one(prefix, shape.feed_forward)
    result = {f"{prefix}.gate.weight": make(shape.experts, shape.hidden)}
    for expert in range(shape.experts):
        result |= one(f"{prefix}.experts.{expert}", shape.expert_feed_forward)
    return result


def as_dtype(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """bf16 by rounding to nearest even, as uint16: numpy has no such type."""
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])


def write_weights(folder: Path, tensors: Mapping[str, NDArray[Any]], dtype: str, shards: int = 1) -> None:
    """One model.safetensors, or `shards` files with an index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensor for name, tensor in list(tensors.items())[number::shards]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    write_raw_safetensors(path, header, b"".join(tensor.tobytes() for tensor in tensors.values()))


def write_raw_safetensors(path: Path, header: Any, data: bytes) -> None:
    """`header` as JSON, or as the bytes themselves: for files that are wrong on purpose."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def make_adapter(
    folder: Path, targets: Mapping[str, tuple[int, int]], *, rank: int = 4, **settings: Any
) -> dict[str, Any]:
    """A LoRA adapter in PEFT's layout for weights by path and shape; gives what is to be added to each weight, in
    float64, for alpha / rank = 2."""
    folder.mkdir()
    random = np.random.default_rng(6)
    tensors, added = {}, {}
    for path, (rows, columns) in targets.items():
        down, up = (random.standard_normal(size).astype(np.float32) * 0.1 for size in ((rank, columns), (rows, rank)))
        tensors[f"base_model.model.{path}.lora_A.weight"] = down
        tensors[f"base_model.model.{path}.lora_B.weight"] = up
        added[f"{path}.weight"] = 2.0 * (up.astype(np.float64) @ down.astype(np.float64))
    write_safetensors(folder / "adapter_model.safetensors", tensors, "F32")
    usual = {"peft_type": "LORA", "lora_alpha": 2 * rank, "r": rank, "bias": "none", "fan_in_fan_out": False}
    write_json(folder / "adapter_config.json", usual | settings)
    return added
