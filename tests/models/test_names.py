"""The parser of names against any text: a Reference or a LocalqwenError, and its own texts mean the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from localqwen.errors import LocalqwenError, ModelNotFound
from localqwen.models import names, registry
from localqwen.models.names import LocalPath, Named, Reference, Repository

MODELS = registry.models().values()
KNOWN = [*registry.models(), *registry.families(), *(alias for model in MODELS for alias in model.aliases)]
QUANTS = sorted({quant for model in MODELS for quant in (*model.quants, *model.mlx, *model.other)})
BITS = [
    "hf:",
    "ms:",
    ":",
    "-",
    "/",
    "\\",
    "~",
    ".",
    "..",
    ".gguf",
    "C:\\x",
    "İ",
    "ſ",
    " ",
    "\0",
    "\x1b[31m",
    "\ud800",
]

#: Any text, also one that no encoding has; and texts made of what names are made of.
TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
NAMELIKE = st.lists(st.sampled_from([*KNOWN, *QUANTS, *BITS, "owner", "Name.v2", "q4_k_m"]), max_size=6).map("".join)
NAMED = st.builds(
    lambda name, quant: f"{name}-{quant}" if quant else name, st.sampled_from(KNOWN), st.sampled_from(["", *QUANTS])
)
PARTS = st.text(st.sampled_from("abcXYZ019._-"), min_size=1, max_size=12)
REPOSITORIES = st.builds(
    lambda prefix, owner, name, quant: f"{prefix}:{owner}/{name}" + (f":{quant}" if quant else ""),
    st.sampled_from(["hf", "ms", "HF", "Ms"]), PARTS, PARTS, st.sampled_from(["", "q4_k_m", "Q8_0", "UD-Q4_K_XL"]),
)  # fmt: skip


def parsed(text: str) -> Reference | None:
    """None for what is refused. Any other exception is a fault."""
    try:
        return names.parse(text)
    except LocalqwenError:
        return None


@given(TEXT | NAMELIKE | NAMED | REPOSITORIES)
@example("~nobody-of-this-name/x")
@example("~\0/x")
@example("~\ud800")
@example("./demo")
@example("./~x")
@example("./hf:owner/name")
@example("C:\\models\\x.gguf")
@example("\\\\server\\share\\x.gguf")
@example("hf:owner/name:Q8_0")
@example("hf:owner/name:")
@example("a" * 5000)
@example("/" + "a" * 5000)
@example("")
def test_any_text_is_a_reference_or_refused_and_the_text_of_a_reference_means_it(text: str) -> None:
    reference = parsed(text)
    if reference is not None:
        assert names.parse(reference.text) == reference
        assert isinstance(reference.display, str)


@given(NAMED | REPOSITORIES, st.data())
def test_upper_and_lower_case_mean_the_same(text: str, data: st.DataObject) -> None:
    """But the name of a repository is the hub's, and keeps its case."""
    flips = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    other = "".join(char.swapcase() if flip else char for char, flip in zip(text, flips, strict=True))
    reference, again = parsed(text), parsed(other)
    if isinstance(reference, Repository):
        assert isinstance(again, Repository)
        assert again.repo.lower() == reference.repo.lower()
        assert (again.source, again.quant) == (reference.source, reference.quant)
    else:
        assert again == reference


@given(TEXT.filter(lambda text: "/" not in text and "\0" not in text))
def test_a_name_of_a_file_is_reached_by_its_path(text: str) -> None:
    assume(text not in ("", ".", ".."))
    reference = names.parse(f".{os.sep}{text}")
    assert reference == LocalPath(Path(text))
    assert names.parse(reference.text) == reference


@pytest.mark.parametrize("text", ["-" * 200_000, "qwen3:4b" + "-q" * 100_000, "x" * 1_000_000, "hf:" + "a" * 1_000_000])
def test_a_very_long_name_is_refused_with_a_short_message(text: str) -> None:
    with pytest.raises(LocalqwenError) as error:
        names.parse(text)
    assert len(error.value.message) < 500


def test_only_a_name_without_a_quantization_is_bare() -> None:
    for text, bare in (
        ("qwen3", True),
        ("qwen3:4b", True),
        ("Qwen3:30B", True),
        ("qwen3:4b-q4_k_m", False),
        ("qwen3:4b-4bit", False),
    ):
        reference = names.parse(text)
        assert isinstance(reference, Named)
        assert reference.bare is bare, text


def test_a_control_character_is_shown_and_not_sent() -> None:
    for text in ("a\x1b[31mb", "qwen3:\x1b[31m", "qwen3:4b-q\x07"):
        with pytest.raises(ModelNotFound) as error:
            names.parse(text)
        assert error.value.message.isprintable()
        assert "\\x" in error.value.message
