"""config.json of a Qwen3 checkpoint, dense or a mixture of experts, read strictly. Knows no tensors.

Accepted are the names of transformers 4 and 5, and what MLX adds. What an engine would silently compute differently
(attention biases, a sliding window, layers without experts in a mixture) is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localqwen.errors import FormatError
from localqwen.formats import dtypes, json_file, yarn
from localqwen.formats.yarn import Scaling

#: transformers' architecture -> GGUF's.
ARCHITECTURES = {"Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3moe"}
_OF_MODEL_TYPE = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp; also keeps a forged config from growing a list without end
MAX_EXPERTS = 512  # LLAMA_MAX_EXPERTS
_MAX_SIZE = 2**31 - 1
#: transformers' Qwen3Config: the length of a head where a dense model does not give it.
_DENSE_HEAD = 128
FILE = "config.json"
HINT = "compare config.json with the makers' original"


@dataclass(frozen=True)
class Qwen3Config:
    """The sizes that shape the tensors, and what else a loader must know. Counts are elements, heads, tokens.

    A dense model has 0 `experts`; in a mixture every layer has them, and `feed_forward` shapes no tensor. `rope` says
    how rotary positions are scaled, as config.json does, with `rope_type`; None where they are not. `dtype` is a name
    of the table of types, "" where config.json names none. `quantization` is {} for weights that are not quantized.
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
    rope: Mapping[str, Any] | None = None
    dtype: str = ""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0

    @property
    def gguf_architecture(self) -> str:
        return ARCHITECTURES[self.architecture]

    @property
    def scaling(self) -> Scaling | None:
        if self.rope is None:
            return None
        original = self.rope.get("original_max_position_embeddings") or 0
        return Scaling(float(self.rope["factor"]), original, self.rope["rope_type"])


def read(folder: Path) -> Qwen3Config:
    """Read the config.json of a checkpoint folder. Raises FormatError."""
    return parse(json_file.read_object(folder / FILE), str(folder / FILE))


def parse(config: Mapping[str, Any], where: str = FILE) -> Qwen3Config:
    """Return the content of a config.json as checked numbers; `where` names it in errors. Raises FormatError."""
    return _Fields(config, where).config()


def stretched(config: Mapping[str, Any], factor: int) -> tuple[dict[str, Any], Scaling]:
    """Return a config.json whose context is longer by YaRN, and the scaling that it carries now.

    Raises UsageError for a factor that the makers do not advise, FormatError, and ConversionError for a model that was
    not made for it.
    """
    parsed = parse(config)
    scaling = yarn.by_factor(factor, parsed.context, parsed.scaling)
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = {**(config.get(key) or {}), **scaling.as_config}
    return {**config, key: rope, "max_position_embeddings": factor * scaling.original}, scaling


def is_for_mlx(folder: Path) -> bool:
    """Return whether weights are quantized in MLX's form, which no other engine reads; False without config.json.

    Raises FormatError for a config.json that is no JSON object.
    """
    file = folder / FILE
    quantization = json_file.read_object(file).get("quantization") if file.is_file() else None
    return isinstance(quantization, Mapping) and "bits" in quantization


def positive(values: Mapping[str, Any], key: str, where: str = FILE) -> float:
    """Return a positive number of config.json. Raises FormatError."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise FormatError(f"{where}: {key} is {value!r}, not a positive number", HINT)
    return float(value)


class _Fields:
    """A config.json whose fields are taken one by one, each with its type checked."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where

    def config(self) -> Qwen3Config:
        architecture = self._architecture()
        self._check_supported()
        rope = self._rope()
        heads, hidden = self._count("num_attention_heads"), self._count("hidden_size")
        result = Qwen3Config(
            architecture=architecture,
            layers=self._count("num_hidden_layers", MAX_LAYERS),
            hidden=hidden,
            feed_forward=self._count("intermediate_size"),
            heads=heads,
            kv_heads=self._count("num_key_value_heads", default=heads),
            head_size=self._head_size(architecture, hidden // heads),
            vocabulary=self._count("vocab_size"),
            context=self._count("max_position_embeddings"),
            norm_epsilon=positive(self._config, "rms_norm_eps", self._where),
            rope_theta=positive({**self._config, **rope}, "rope_theta", self._where),
            tied=self._flag("tie_word_embeddings"),
            rope=self._scaled(rope),
            dtype=self._dtype(),
            quantization=self._object("quantization", "quantization_config"),
            **(self._experts() if architecture != "Qwen3ForCausalLM" else {}),
        )
        if result.heads % result.kv_heads or result.head_size % 2:
            raise self._wrong(
                f"{result.heads} heads on {result.kv_heads} key-value heads of {result.head_size} is no attention that "
                "Qwen3 can have"
            )
        return result

    def _architecture(self) -> str:
        """Return what `architectures` says, which older tools leave out, or else `model_type`; they must agree."""
        model_type, named = self._config.get("model_type"), self._config.get("architectures")
        if model_type is not None and str(model_type) not in _OF_MODEL_TYPE:
            raise FormatError(f"{self._where}: this is a {model_type} model", _SUPPORTED)
        if named is None and model_type is not None:
            return _OF_MODEL_TYPE[model_type]
        if named not in [[known] for known in ARCHITECTURES]:
            found = ", ".join(map(str, named)) if isinstance(named, list) and named else "none"
            raise FormatError(f"the architecture is {found}; supported are {' and '.join(ARCHITECTURES)}", _SUPPORTED)
        architecture: str = named[0]
        if model_type is not None and _OF_MODEL_TYPE[model_type] != architecture:
            raise self._wrong(f"model_type is {model_type}, architectures has {architecture}")
        return architecture

    def _check_supported(self) -> None:
        config = self._config
        if config.get("attention_bias"):
            raise self._wrong("attention_bias is set, which no Qwen3 has")
        if config.get("use_sliding_window") or "sliding_attention" in str(config.get("layer_types")):
            raise self._wrong("it asks for a sliding window, which no Qwen3 has")
        if config.get("hidden_act", "silu") != "silu":
            raise self._wrong(f"hidden_act is {config['hidden_act']!r}, Qwen3 has silu")

    def _head_size(self, architecture: str, share: int) -> int:
        """Return `head_dim`. transformers reads 128 where a dense config lacks it; null is the width per head."""
        absent = _DENSE_HEAD if architecture == "Qwen3ForCausalLM" and "head_dim" not in self._config else share
        return self._count("head_dim", default=absent)

    def _experts(self) -> dict[str, int]:
        """Return the counts of a mixture: experts in every layer, the weights of the chosen ones add up to 1."""
        config = self._config
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise self._wrong("it has layers without experts, which no Qwen3 mixture has")
        if config.get("norm_topk_prob") is not True:
            raise self._wrong("norm_topk_prob is not set, as every Qwen3 mixture sets it")
        # transformers 5 writes num_local_experts.
        experts = self._count("num_local_experts" if "num_local_experts" in config else "num_experts", MAX_EXPERTS)
        return {
            "experts": experts,
            "experts_used": self._count("num_experts_per_tok", experts),
            "expert_feed_forward": self._count("moe_intermediate_size"),
        }

    def _rope(self) -> Mapping[str, Any]:
        """Return `rope_scaling` of transformers 4, or `rope_parameters` of 5, which holds theta too."""
        rope = self._config.get("rope_parameters") or self._config.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise self._wrong(f"rope_scaling is {rope!r}, not an object")
        return rope

    def _scaled(self, rope: Mapping[str, Any]) -> Mapping[str, Any] | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return None
        original = rope.get("original_max_position_embeddings")
        if not isinstance(kind, str) or not (_is_count(original) or (original is None and kind != "yarn")):
            raise self._wrong(f"rope_scaling is {str(dict(rope))[:200]}")
        positive(rope, "factor", f"{self._where}: rope_scaling")
        return {**rope, "rope_type": kind}

    def _dtype(self) -> str:
        """Return `torch_dtype`, `dtype` since transformers 5."""
        named = self._config.get("torch_dtype") or self._config.get("dtype")
        if named is not None and not isinstance(named, str):
            raise self._wrong(f"dtype is {named!r}, not a name")
        known = dtypes.TORCH.get(named or "")
        return known.name if known else ""

    def _object(self, *keys: str) -> Mapping[str, Any]:
        """Return the first of the objects `keys` that is there, or {}."""
        found: Any = next((self._config[key] for key in keys if self._config.get(key)), {})
        if not isinstance(found, Mapping):
            raise self._wrong(f"{keys[0]} is {str(found)[:80]}, not an object")
        return found

    def _flag(self, key: str) -> bool:
        value = self._config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(f"{key} is {value!r}, not true or false")
        return bool(value)

    def _count(self, key: str, limit: int = _MAX_SIZE, *, default: int | None = None) -> int:
        """Return a number from 1 to `limit`. A field that is null or absent is an error without a `default`."""
        given = self._config.get(key)
        value: Any = default if given is None else given
        if not _is_count(value, limit):
            raise self._wrong(f"{key} is {value!r}, not a number from 1 to {limit:,}")
        return int(value)

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"{self._where}: {what}", HINT)


_SUPPORTED = "give a checkpoint of Qwen3: 0.6B to 32B, 30B-A3B, 235B-A22B, or one made from them"


def _is_count(value: Any, limit: int = _MAX_SIZE) -> bool:
    return type(value) is int and 0 < value <= limit
