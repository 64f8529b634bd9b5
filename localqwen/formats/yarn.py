"""How far a context reaches: as the model was trained, or stretched by YaRN, when it is opened or converted. Pure.

The makers' rule (model cards of Qwen3, "Processing Long Texts"): the models of 32,768 tokens are validated with YaRN up
to 131,072, by the factor that the texts need, 2 or 4; the models of July 2025 read 262,144 without it. The scaling is
static: it changes the positions of short texts too, which hurts them a little.
"""

from __future__ import annotations

from dataclasses import dataclass

from localqwen.errors import ConversionError, UsageError

FACTORS = (2, 4)
#: What the hybrids were trained on; the 40,960 that their files say add room for an answer.
TRAINED, WITH_ANSWER = 32_768, 40_960


@dataclass(frozen=True)
class Scaling:
    """Rotary positions scaled by `factor`, of a model that was trained on `original` tokens (0: not said).

    `kind` is spelled as in GGUF and config.json: yarn, linear, …
    """

    factor: float
    original: int
    kind: str = "yarn"

    @property
    def label(self) -> str:
        """The scaling for people, such as `YaRN 4`."""
        return f"{'YaRN' if self.kind == 'yarn' else self.kind} {self.factor:g}"

    @property
    def as_config(self) -> dict[str, str | float | int]:
        """The scaling as `rope_scaling` of config.json."""
        return {
            "rope_type": self.kind,
            "factor": self.factor,
            "original_max_position_embeddings": self.original,
        }

    @property
    def warning(self) -> str:
        return (
            f"the context is stretched by YaRN, factor {self.factor:g}: texts shorter than {self.original:,} tokens "
            "are understood a little worse"
        )


def reach(native: int, carried: Scaling | None) -> int:
    """Return the longest context, in tokens, of a model whose file says `native` and carries that scaling."""
    if carried is not None:
        # The makers' model cards add the scaling to config.json and leave its 40,960 as they are.
        return max(native, int(carried.factor * carried.original) if carried.kind == "yarn" else 0)
    return FACTORS[-1] * min(native, TRAINED) if native <= WITH_ANSWER else native


def needed(context: int, native: int, carried: Scaling | None, *, name: str = "this model") -> Scaling | None:
    """Return the scaling that a context of `context` tokens takes beyond what the file carries; None if it takes none.

    Raises UsageError for more than the model supports, and for less than one token.
    """
    longest = reach(native, carried)
    if not 1 <= context <= longest:
        raise UsageError(
            f"a context of {context:,} tokens is not possible: {name} supports {_supported(native, longest, carried)}",
            f"use --ctx {longest} or less",
        )
    if context <= native or carried is not None:
        return None
    original = min(native, TRAINED)
    return Scaling(float(next(factor for factor in FACTORS if factor * original >= context)), original)


def by_factor(factor: int, native: int, carried: Scaling | None) -> Scaling:
    """Return the scaling that a conversion writes into a file whose context is `native` tokens.

    Raises UsageError for a factor that the makers do not advise, ConversionError for a model that was not made for it.
    """
    if factor not in FACTORS:
        raise UsageError(
            f"YaRN by {factor} is not what the model was made for", f"--yarn {' or --yarn '.join(map(str, FACTORS))}"
        )
    if carried is not None:
        raise ConversionError(f"this checkpoint is stretched already, by {carried.label}", "convert it without --yarn")
    if native > WITH_ANSWER:
        raise ConversionError(
            f"this model reads {native:,} tokens without YaRN, which is made for models of {TRAINED:,}",
            "convert it without --yarn",
        )
    return Scaling(float(factor), min(native, TRAINED))


def _supported(native: int, longest: int, carried: Scaling | None) -> str:
    if carried is not None:
        return f"{longest:,} with the {carried.label} that stands in its file"
    return f"{native:,}" + (f", or {longest:,} with YaRN" if longest > native else "")
