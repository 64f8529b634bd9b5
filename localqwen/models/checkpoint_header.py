"""The sizes of a checkpoint folder, official or quantised for MLX, read from config.json without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localqwen.errors import ModelNotFound, Unsupported
from localqwen.formats.yarn import Scaling
from localqwen.models.gguf_header import GgufHeader

_ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe"}


def read(folder: Path) -> GgufHeader:
    """What a GGUF file of the same model would say. Raises ModelNotFound, and Unsupported for what is no Qwen3."""
    config = config_of(folder)
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        raise Unsupported(f"{folder} is a {kind} model", "localqwen runs Qwen3: qwen3 and qwen3_moe checkpoints")
    try:
        heads = config["num_attention_heads"]
        return GgufHeader(
            path=folder,
            bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
            name=folder.name,
            architecture=_ARCHITECTURES[kind],
            context_length=config["max_position_embeddings"],
            block_count=config["num_hidden_layers"],
            kv_heads=config.get("num_key_value_heads", heads),
            head_length=config.get("head_dim", config["hidden_size"] // heads),
            width=config["hidden_size"],
            heads=heads,
            scaling=_scaling(config),
        )
    except (KeyError, TypeError) as exc:
        raise Unsupported(f"{folder / 'config.json'} lacks {exc}", "take the folder of a Qwen3 checkpoint") from exc


def rope_settings(config: dict[str, Any]) -> dict[str, Any] | None:
    """How rotary positions are scaled; None where they are not.

    Up to transformers 4 it is called `rope_scaling`, since 5 `rope_parameters`. Raises Unsupported.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise Unsupported(f"config.json: rope_scaling is {rope!r}, not an object", "compare it with the makers' own")
    kind = rope.get("rope_type", rope.get("type", "default"))
    return {**rope, "rope_type": kind} if kind != "default" else None


def _scaling(config: dict[str, Any]) -> Scaling | None:
    rope = rope_settings(config)
    if rope is None:
        return None
    factor, original = rope.get("factor", 1.0), rope.get("original_max_position_embeddings", 0)
    if type(factor) not in (int, float) or not 0 < factor < float("inf") or type(original) is not int or original < 0:
        raise Unsupported(f"config.json: its rope_scaling is {rope}", "compare it with the makers' own")
    return Scaling(float(factor), original, str(rope["rope_type"]))


def is_for_mlx(folder: Path) -> bool:
    """Whether the weights are quantised in MLX's form, which no other engine and no converter reads."""
    quantization = config_of(folder).get("quantization") if (folder / "config.json").is_file() else None
    return isinstance(quantization, dict) and "bits" in quantization


def config_of(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelNotFound(f"there is no config.json in {folder}", "name the folder of a checkpoint")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise Unsupported(f"{file} is not JSON: {exc}", "download it again") from exc
    return config if isinstance(config, dict) else {}
