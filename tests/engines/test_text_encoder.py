"""Texts before byte-pair encoding: tags, pieces and limits, with an encoder that gives a token per character."""

from __future__ import annotations

import pytest
from growth import ratio

from localqwen.engines.text_encoder import LONG_PIECE, PIECE, Tag, TextEncoder

TAGS = [Tag("<think>", 1, False), Tag("</think>", 2, False), Tag("<|end|>", 3, True), Tag("<|end|>>", 4, False)]


class Characters:
    """Encodes a text as its code points, and notes what it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> list[int]:
        self.texts.append(text)
        return [1000 + ord(character) for character in text]

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def encoder(*, divisible: bool = True, tags: list[Tag] | None = None) -> tuple[TextEncoder, Characters]:
    library = Characters()
    made = TextEncoder(
        TAGS if tags is None else tags, library, lambda token: chr(token - 1000).encode(), divisible=divisible
    )
    return made, library


def shown(ids: list[int]) -> list[int | str]:
    """The ids with the encoder's characters written out."""
    result: list[int | str] = []
    for token in ids:
        character = chr(token - 1000) if token >= 1000 else ""
        if character and result and isinstance(result[-1], str):
            result[-1] += character
        else:
            result.append(character or token)
    return result


@pytest.mark.parametrize(
    ("text", "special", "expected"),
    [
        ("", True, []),
        ("a<think>b</think>c", False, ["a", 1, "b", 2, "c"]),
        ("<think><think>", False, [1, 1]),
        ("<|end|>", True, [3]),
        ("<|end|>", False, ["<|end|>"]),
        ("a<|end|>>b<|end|>", True, ["a", 4, "b", 3]),  # the longest first
        ("<|end|>>", False, [4]),
        ("<thin<think>k>", False, ["<thin", 1, "k>"]),
        ("e\u0301<think>", False, ["\u00e9", 1]),
        ("\ud83d", False, ["?"]),
    ],
)
def test_tags_are_one_id_and_the_rest_is_encoded(text: str, special: bool, expected: list[int | str]) -> None:
    assert shown(encoder()[0].encode(text, special=special)) == expected


def test_a_tag_that_no_normalized_text_has_is_no_tag() -> None:
    made, _ = encoder(tags=[Tag("\udcff", 1, False), Tag("e\u0301", 2, True), Tag("", 3, False)])
    assert shown(made.encode("\udcffe\u0301", special=True)) == ["?\u00e9"]
    assert shown(made.encode("e\u0301", special=True)) == ["\u00e9"]


def test_a_long_text_is_cut_between_a_word_and_what_stands_behind_it() -> None:
    made, library = encoder()
    text = "words and 12 more, " * (PIECE // 4)
    assert len(made.encode(text, special=False)) == len(text)
    assert "".join(library.texts) == text
    assert len(library.texts) > 4
    for piece, following in zip(library.texts, library.texts[1:], strict=False):
        assert PIECE <= len(piece) < PIECE + 20
        assert piece[-1].isalnum()
        assert not following[0].isalpha()


def test_without_a_boundary_or_with_another_tokenizer_a_text_stays_whole() -> None:
    for text, divisible in (("\u00e9" * 5 * PIECE, True), ("a b " * 2 * PIECE, False)):
        made, library = encoder(divisible=divisible)
        made.encode(text, special=False)
        assert library.texts == [text]


def test_a_tag_with_a_boundary_inside_forbids_cutting() -> None:
    made, library = encoder(tags=[Tag("a b", 7, False)])
    assert made.encode("a b" * PIECE, special=False) == [7] * PIECE
    assert library.texts == []


@pytest.mark.parametrize("text", ["one word more. " * PIECE, "a" * 16 * PIECE, "!?" * 8 * PIECE, "\u0301" * 16 * PIECE])
def test_with_a_limit_no_more_is_read_than_tells_that_it_is_exceeded(text: str) -> None:
    made, library = encoder()
    ids = made.encode(text, special=False, limit=1000)
    assert len(ids) > 1000
    assert library.characters <= PIECE + 20


def test_a_long_word_within_the_limit_is_encoded_exactly() -> None:
    made, library = encoder()
    word = "\u00e9" * (LONG_PIECE + 1)
    assert len(made.encode(word, special=False, limit=len(word))) == len(word)
    assert library.texts[-1] == word


def test_a_word_somewhat_longer_than_the_limit_is_encoded_exactly() -> None:
    made, _ = encoder()
    word = "a" * (LONG_PIECE + 1)
    assert len(made.encode(word, special=False, limit=len(word) - 2)) == len(word)


@pytest.mark.parametrize("text", ["<think>", "<think>x", "<|end|>", "<|end|>><think>", "</think> and "])
def test_four_times_the_tags_take_about_four_times_as_long(text: str) -> None:
    made, _ = encoder()
    assert ratio(lambda text: made.encode(text, special=True), text * 2_000, text * 8_000) < 8
