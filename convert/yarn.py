"""Longer context by YaRN: what the makers tell to write into config.json, before anything else reads it.

Qwen3 was trained on 32,768 tokens; factor 2 reaches 65,536 and factor 4 131,072. The scaling is static: it changes the
positions of short texts too, which hurts them a little.
"""

from __future__ import annotations

from convert.checkpoint import Checkpoint
from localqwen.errors import ConversionError, UsageError
from localqwen.formats.qwen3_config import read_config

FACTORS = (2, 4)
#: What the hybrids were trained on; their max_position_embeddings of 40,960 add room for the prompt.
TRAINED, WITH_PROMPT = 32_768, 40_960


def apply(checkpoint: Checkpoint, factor: int | None) -> None:
    """Raises UsageError for a factor that the makers do not advise, ConversionError for a model not made for it."""
    if factor is None:
        return
    if factor not in FACTORS:
        raise UsageError(f"YaRN by {factor} is not what the model was made for", "--yarn 2 or --yarn 4")
    config = read_config(checkpoint.config)
    if config.yarn is not None:
        raise ConversionError("this checkpoint is stretched by YaRN already", "convert it without --yarn")
    if config.context > WITH_PROMPT:
        raise ConversionError(
            f"this model reads {config.context:,} tokens without YaRN, which is made for models of {TRAINED:,}",
            "convert it without --yarn",
        )
    original = min(config.context, TRAINED)
    scaling = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    where = "rope_parameters" if checkpoint.config.get("rope_parameters") else "rope_scaling"
    before = checkpoint.config.get(where) or {}
    checkpoint.config |= {where: {**before, **scaling}, "max_position_embeddings": factor * original}
    checkpoint.notes += (
        f"stretched to {factor * original:,} tokens: texts shorter than {original:,} are understood a little worse",
    )
