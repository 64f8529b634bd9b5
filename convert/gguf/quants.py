"""The quantizations of GGUF by name, and the type that each tensor gets. It touches no weights and no library.

The rules are those of llama.cpp for Qwen3 (llama-quant.cpp: llama_tensor_get_type), so that a file has the types that
`llama-quantize` would give it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from localqwen.errors import ConversionError, UsageError
from localqwen.formats.dtypes import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    DType,
)

#: The types that a conversion reads and writes, by the name that llama.cpp prints, in lower case.
TYPES = {
    dtype.name.lower(): dtype
    for dtype in (
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4
    )
}  # fmt: skip


@dataclass(frozen=True)
class Quantization:
    """A quantization: `file_type` is its number in `general.file_type`, `base` the type of most of its matrices."""

    name: str
    file_type: int
    base: DType
    meaning: str


QUANTIZATIONS = {
    each.name: each
    for each in (
        Quantization("f32", 0, F32, "32 bit, exact for every checkpoint"),
        Quantization("f16", 1, F16, "16 bit, for processors that are slow with bf16"),
        Quantization("bf16", 32, BF16, "16 bit, the numbers of the official checkpoints as they are"),
        Quantization("q8_0", 7, Q8_0, "8 bit, almost the same answers as 16 bit"),
        Quantization("q6_k", 18, Q6_K, "6 bit"),
        Quantization("q5_k_m", 17, Q5_K, "5 bit, 6 where they matter most"),
        Quantization("q5_k_s", 16, Q5_K, "5 bit"),
        Quantization("q5_0", 8, Q5_0, "5 bit, the older kind"),
        Quantization("q4_k_m", 15, Q4_K, "4 bit, 6 where they matter most; the usual choice"),
        Quantization("q4_k_s", 14, Q4_K, "4 bit, 5 in a few layers"),
        Quantization("q4_0", 2, Q4_0, "4 bit, the older kind"),
        Quantization("iq4_nl", 25, IQ4_NL, "4 bit on an uneven scale, blocks of 32"),
        Quantization("iq4_xs", 30, IQ4_XS, "4 bit on an uneven scale, blocks of 256, a little smaller"),
        Quantization("mxfp4", 38, MXFP4, "4 bit floats for the experts of a mixture, 8 bit for everything else"),
        Quantization("q3_k_m", 12, Q3_K, "3 bit, 4 or 5 where they matter most"),
        Quantization("q2_k", 10, Q2_K, "2 bit, 3 or 4 where they matter most; it hurts"),
    )
}
#: Other names that llama-quantize knows for the same files.
ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4_moe": "mxfp4"}

#: Where rows do not divide into blocks of 256, the type with blocks of 32 that takes over (tensor_type_fallback).
_FALLBACK = {Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, IQ4_XS: IQ4_NL}
#: Without eight experts, attention's output gains from more bits only where the others have very few.
_ATTENTION_OUTPUT = {"q2_k": Q3_K, "q3_k_m": Q4_K}
_ATTENTION_OUTPUT_OF_EIGHT = dict.fromkeys(("q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"), Q5_K)


def quantization(name: str) -> Quantization:
    """Return the quantization of a name, in any case. Raise ConversionError, with the known names, if there is none."""
    lower = name.lower()
    try:
        return QUANTIZATIONS[ALIASES.get(lower, lower)]
    except KeyError:
        raise ConversionError(
            f"unknown quantization {name!r}", f"known are {', '.join(QUANTIZATIONS)}: localqwen convert --list"
        ) from None


@dataclass(frozen=True)
class Override:
    """A type for the tensors whose GGUF name `pattern` is found in, as with `llama-quantize --tensor-type`.

    The first match wins.
    """

    pattern: re.Pattern[str]
    type: DType


def override(text: str) -> Override:
    """Parse PATTERN=TYPE, such as `blk.*.ffn_down=q6_k`. Raise UsageError."""
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern or kind.lower() not in TYPES:
        raise UsageError(
            f"{text!r} is not PATTERN=TYPE", f"for instance 'blk.*.ffn_down=q6_k'; types are {', '.join(TYPES)}"
        )
    try:
        return Override(re.compile(pattern.lower()), TYPES[kind.lower()])
    except re.error as exc:
        raise UsageError(
            f"{pattern!r} is not a regular expression: {exc}", "for instance 'blk.*.ffn_down=q6_k'"
        ) from exc


@dataclass(frozen=True)
class Recipe:
    """A quantization and its changes: overrides, and whether an importance matrix is given."""

    quantization: Quantization
    overrides: tuple[Override, ...] = ()
    importance: bool = False


@dataclass(frozen=True)
class Sizes:
    """What the rules depend on; `experts` is 0 in a dense model, `sharing` query heads share a key-value head."""

    layers: int
    experts: int
    sharing: int
    tied: bool


@dataclass
class _Counters:
    """How many tensors of each kind the rules have seen; as in llama.cpp, overridden ones are not counted."""

    recipe: Recipe
    sizes: Sizes
    seen: dict[str, int] = field(default_factory=dict)

    def next(self, kind: str) -> int:
        """Count a tensor of a kind; return its index, from 0."""
        self.seen[kind] = self.seen.get(kind, -1) + 1
        return self.seen[kind]


#: A tensor's GGUF name and shape, rows first and experts before them.
Named = tuple[str, tuple[int, ...]]


def tensor_types(recipe: Recipe, tensors: Sequence[Named], sizes: Sizes) -> list[DType | None]:
    """Return a type for each tensor, None for those that are never quantized. `tensors` are in llama.cpp's order.

    Raise UsageError for an override that has no effect.
    """
    if recipe.overrides and not recipe.quantization.base.quantized:
        raise UsageError(
            f"types of single tensors belong to a quantization, {recipe.quantization.name} is none", "--quant q8_0"
        )
    _check_overrides(recipe.overrides, tensors)
    counters = _Counters(recipe, sizes)
    return [_tensor_type(counters, name, shape) if quantizable(name, shape) else None for name, shape in tensors]


def _check_overrides(overrides: Sequence[Override], tensors: Sequence[Named]) -> None:
    """Raise UsageError for a pattern that matches no tensor."""
    names = [name for name, shape in tensors if quantizable(name, shape)]
    for each in overrides:
        if not any(each.pattern.search(name) for name in names):
            raise UsageError(
                f"no tensor that can be quantized matches {each.pattern.pattern!r}",
                f"they are called {', '.join(names[-3:])} and so on",
            )


def quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor may be quantized. Vectors, norms and routers are small, and everything needs them."""
    return len(shape) > 1 and name.endswith("weight") and not name.endswith(("_norm.weight", ".ffn_gate_inp.weight"))


def _tensor_type(counters: _Counters, name: str, shape: tuple[int, ...]) -> DType:
    base = counters.recipe.quantization.base
    if not base.quantized:
        return base
    for each in counters.recipe.overrides:
        if each.pattern.search(name):
            return _fitting(each.type, shape[-1])
    if name == "output.weight" or (counters.sizes.tied and name == "token_embd.weight"):
        return _fitting(_output_type(base, shape[-1]), shape[-1])
    if base is MXFP4:
        return _fitting(MXFP4 if len(shape) == 3 and shape[0] > 1 else Q8_0, shape[-1])
    return _fitting(_layer_type(counters, name), shape[-1])


def _output_type(base: DType, columns: int) -> DType:
    """The head stays better than the rest; tied embeddings are the head too."""
    return Q8_0 if base in (Q8_0, MXFP4) or not base.fits(columns) else Q6_K


def _layer_type(counters: _Counters, name: str) -> DType:
    """attn_v and ffn_down gain most from more bits, and some layers more than others."""
    quant, sizes = counters.recipe.quantization, counters.sizes
    match name.removesuffix(".weight").removesuffix("_exps").rpartition(".")[2]:
        case "attn_k" if sizes.experts == 8:
            return Q8_0  # among exactly eight experts, attention is small
        case "attn_v":
            wanted = _attention_values(quant, counters.next("attn_v"), sizes)
            return Q8_0 if sizes.experts == 8 else wanted
        case "attn_output":
            table = _ATTENTION_OUTPUT_OF_EIGHT if sizes.experts == 8 else _ATTENTION_OUTPUT
            return table.get(quant.name, quant.base)
        case "ffn_down":
            counted = counters.next("ffn_down")
            layer = int(name.split(".")[1]) if sizes.experts > 1 else counted
            return _way_down(counters.recipe, layer, sizes.layers)
    return quant.base


def _attention_values(quant: Quantization, index: int, sizes: Sizes) -> DType:
    match quant.name:
        case "q2_k":
            return Q4_K if sizes.sharing >= 4 else Q3_K
        case "q3_k_m":
            return Q5_K if index < 2 else Q4_K
        case "iq4_nl" | "iq4_xs" if sizes.sharing >= 4:
            return Q5_K
        case "q4_k_m" | "q5_k_m" if _more_bits(index, sizes.layers):
            return Q6_K
        case "q4_k_s" if index < 4:
            return Q5_K
    return quant.base


def _way_down(recipe: Recipe, layer: int, layers: int) -> DType:
    quant, first_eighth = recipe.quantization, layer < layers // 8
    match quant.name:
        case "q2_k":
            return Q3_K
        case "q3_k_m":
            return Q5_K if layer < layers // 16 else Q4_K
        case "q4_k_m" | "q5_k_m" if _more_bits(layer, layers):
            return Q6_K
        case "q4_k_s" if first_eighth:
            return Q5_K
        case "iq4_nl" | "iq4_xs" if first_eighth and not recipe.importance:
            return Q5_K
        case "q4_0" | "q5_0" if first_eighth and recipe.importance:  # an importance matrix alone can spoil these
            return Q4_1 if quant.name == "q4_0" else Q5_1
    return quant.base


def _more_bits(layer: int, layers: int) -> bool:
    """Return whether a layer is in an outer eighth or every third between (llama-quant.cpp: use_more_bits)."""
    eighth = layers // 8
    # The remainder of a negative number has another sign in C, but there the first test is already true.
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: DType, columns: int) -> DType:
    if not wanted.fits(columns):
        wanted = _FALLBACK.get(wanted, wanted)
    return wanted if wanted.fits(columns) else F16
