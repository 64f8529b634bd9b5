"""How far a context reaches: one rule for opening a model and for converting it."""

from __future__ import annotations

from itertools import product

import pytest

from localqwen.errors import ConversionError, UsageError
from localqwen.formats import yarn
from localqwen.formats.yarn import Scaling

HYBRID, BASE, JULY = 40_960, 32_768, 262_144


@pytest.mark.parametrize(
    ("asked", "native", "factor"),
    [
        (1, HYBRID, None),
        (40_960, HYBRID, None),
        (40_961, HYBRID, 2),
        (65_536, HYBRID, 2),
        (65_537, HYBRID, 4),
        (131_072, HYBRID, 4),
        (32_768, BASE, None),
        (40_960, BASE, 2),
        (131_072, BASE, 4),
        (262_144, JULY, None),
        (20_000, 8192, 4),
    ],
)
def test_the_smallest_factor_of_the_makers_that_reaches_is_taken(asked: int, native: int, factor: int | None) -> None:
    found = yarn.needed(asked, native, None)
    assert found == (Scaling(factor, min(native, BASE)) if factor else None)


@pytest.mark.parametrize(
    ("asked", "native", "carried", "numbers", "hint"),
    [
        (131_073, HYBRID, None, ["131,073", "40,960", "131,072 with YaRN"], "--ctx 131072"),
        (262_145, JULY, None, ["262,145", "262,144"], "--ctx 262144"),
        (65_537, 65_536, Scaling(2.0, BASE), ["65,537", "65,536", "YaRN 2"], "--ctx 65536"),
        (50_000, HYBRID, Scaling(1.5, 0, "linear"), ["50,000", "40,960", "linear 1.5"], "--ctx 40960"),
        (0, HYBRID, None, ["of 0 tokens"], "--ctx 131072"),
    ],
)
def test_beyond_what_the_model_was_made_for_the_error_says_what_is_possible(
    asked: int, native: int, carried: Scaling | None, numbers: list[str], hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        yarn.needed(asked, native, carried, name="x.gguf")
    assert all(number in caught.value.message for number in [*numbers, "x.gguf"])
    assert hint in caught.value.hint


def test_a_scaling_that_the_file_carries_is_left_as_it_is() -> None:
    """The makers' model cards add it to config.json and leave max_position_embeddings at 40,960."""
    assert yarn.needed(131_072, HYBRID, Scaling(4.0, BASE)) is None
    assert yarn.needed(65_536, 65_536, Scaling(2.0, BASE)) is None


@pytest.mark.parametrize(("native", "factor"), [*product([64, 8192, BASE, HYBRID], [2, 4])])
def test_a_conversion_takes_the_factor_that_opening_takes(native: int, factor: int) -> None:
    """The longest context of `convert --yarn N` is opened by factor N, and the converted file needs nothing more."""
    scaling = yarn.by_factor(factor, native, None)
    longest = factor * min(native, BASE)
    assert scaling == yarn.needed(longest, native, None) == Scaling(float(factor), min(native, BASE))
    assert yarn.needed(longest, longest, scaling) is None
    assert yarn.reach(longest, scaling) == longest <= yarn.reach(native, None)


@pytest.mark.parametrize(
    ("factor", "native", "carried", "error", "words"),
    [
        (8, HYBRID, None, UsageError, "YaRN by 8"),
        (1, HYBRID, None, UsageError, "YaRN by 1"),
        (4, HYBRID + 1, None, ConversionError, "40,961 tokens without YaRN"),
        (4, JULY, None, ConversionError, "262,144 tokens without YaRN"),
        (2, HYBRID, Scaling(4.0, BASE), ConversionError, "stretched already, by YaRN 4"),
        (2, HYBRID, Scaling(2.0, 0, "linear"), ConversionError, "stretched already, by linear 2"),
    ],
)
def test_a_conversion_stretches_only_what_was_made_for_it(
    factor: int, native: int, carried: Scaling | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        yarn.by_factor(factor, native, carried)
    assert "--yarn" in caught.value.hint


@pytest.mark.parametrize("native", [131_072, JULY])
def test_what_is_not_stretched_when_converted_is_not_stretched_when_opened(native: int) -> None:
    assert yarn.reach(native, None) == native
