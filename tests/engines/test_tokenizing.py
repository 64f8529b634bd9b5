"""Text to ids on both engines with Qwen3's own vocabulary: the ids that llama.cpp's tokenizer gives to the whole text,
in a time that grows as the text does."""

from __future__ import annotations

import ctypes
import unicodedata
from collections.abc import Iterator

import pytest
import real_vocabulary
from engine_runs import ENGINES
from growth import ratio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from localqwen import engines
from localqwen.engines import long_runs, text_encoder
from localqwen.engines.engine import Engine
from localqwen.engines.llama_cpp.library import ModelFile, library

TAGS = [text for text, _ in real_vocabulary.ADDED_TOKENS]
PARTS = [
    *TAGS, *(tag[:-1] for tag in TAGS), *(tag[1:] for tag in TAGS), "<", "|", ">", "</", "/", "_",
    "hello", " world", "don't", "'s", "'LL", "'re", "'", "A", "Z", "x1", "1x", "7", "\uff11", "\u00bd", "\u2167",
    "\u00b2", "\n", "\r\n", "\t", " ", "  ", "    ", "\u00a0", "\u3000", "\u2028", "\x0b", "\x85", "\x00", "\ufeff",
    "\u200d", "!", "!!", "?!", "...", "(", ")", '{"a":', "}", "[", "]", "=", "+", "*", "-", "\u3002", "\uff0c",
    "\u00e9", "e\u0301", "\u0301", "\u0323", "\u0345", "\u05b0", "\u017f", "'\u017f", "\u212a", "\u00b5", "\u01c5",
    "\u02bc", "\u6c49\u5b57",
    "\u3007", "\U0002f800", "\U00020000", "\ud55c\uad6d", "\u1112\u1161\u11ab", "\u304b\u3099", "\u304c",
    "\u30fc", "\u03b1", "\u0416", "\u05e9\u05dc", "\u0645\u0631", "\u0928\u092e\u0938\u094d", "\u0e33", "\ufdfa",
    "\U0001f9d1\u200d\U0001f680", "\ud83d",
]  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    folder = real_vocabulary.checkpoint(tmp_path_factory.mktemp("real") / "model")
    opened = {name: engines.open(folder, engine=name, context_length=64, threads=1) for name in ENGINES}
    yield opened
    for engine in opened.values():
        engine.close()


def by_llama_cpp(engine: Engine, text: str, *, special: bool) -> list[int]:
    """The ids that `llama_tokenize` gives to the whole text."""
    model = getattr(engine, "_model")  # noqa: B009
    assert isinstance(model, ModelFile)
    data = unicodedata.normalize("NFC", text).encode(errors="replace")
    buffer = (ctypes.c_int32 * (len(data) + 1))()
    count = library().llama_tokenize(model.vocab, data, len(data), buffer, len(buffer), False, special)
    return buffer[:count]


@pytest.mark.parametrize("special", [True, False])
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(PARTS), max_size=30))
@example(parts=["<|im_start|>", "user", "\n", "<think>", "</think>", "\n", "\n", "<|im_end|>"])
def test_a_text_cut_at_every_boundary_has_the_ids_of_the_whole(
    real: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, special: bool, parts: list[str]
) -> None:
    """Not where `</s>` comes about: llama.cpp takes it for a special token whatever the file says."""
    monkeypatch.setattr(text_encoder, "PIECE", 1)
    text = "".join(parts)
    whole = by_llama_cpp(real["llama.cpp"], text, special=special)
    for name, engine in real.items():
        assert engine.tokenize(text, special=special) == whole, name


#: What a run is made of, in words that are drawn.
RUNS = [
    ["a"], [" "], ["\n"], ["-"], ["="], ["\t"], ["'"], ["*", "/"], ["the", "ing", "qu", "international", "x"],
    [" ", "\t"], ["\n", "\r\n", "\r"], ["--", "==", "'", "!", "<", ">", "`", "."], list("aeiouxyzBCD"), ["\u6c49"],
    [" \n"],
]  # fmt: skip
BETWEEN = st.sampled_from(["", "x", " ", "\n", "'s", "!", "1", "\u00e9", "\u3000", "</", "\r\n\r\n", "\u0301"])


@st.composite
def with_long_runs(draw: st.DrawFn) -> str:
    """A text with runs of some hundred characters."""
    parts = [draw(BETWEEN)]
    for words in draw(st.lists(st.sampled_from(RUNS), min_size=1, max_size=3)):
        chosen = draw(st.lists(st.sampled_from(words), min_size=1, max_size=12))
        parts += ["".join(chosen) * (draw(st.integers(90, 400)) // len(chosen)), draw(BETWEEN)]
    return "".join(parts)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=with_long_runs())
@example(text="\n" + " " * 500)
@example(text="\n" + " " * 500 + "\n")
@example(text="x" + " " * 500 + "\ny")
def test_a_long_word_encoded_in_parts_has_the_ids_of_the_whole(
    real: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(long_runs, "PART", 24)
    monkeypatch.setattr(text_encoder, "LONG_PIECE", 24)
    whole = by_llama_cpp(real["llama.cpp"], text, special=False)
    for name, engine in real.items():
        assert engine.tokenize(text, special=False) == whole, name


@pytest.mark.parametrize("text", ["a", " ", "\n ", "-", "\r\n", "internationalization"])
def test_a_word_of_many_parts_is_not_encoded_as_a_whole(real: dict[str, Engine], text: str) -> None:
    """Where seams can be found, which is the case in every run of one character or word."""
    model = getattr(real["llama.cpp"], "_model")  # noqa: B009
    long = (text.strip(" ") or text) * (8 * long_runs.PART // len(text)) if text != "\n " else "\n" + " " * 200_000
    read: list[int] = []

    def counted(text: str) -> list[int]:
        read.append(len(text))
        return model.tokenize(text, special=False)

    assert long_runs.encode(long, counted, model.piece) == by_llama_cpp(real["llama.cpp"], long, special=False)
    assert max(read) < 3 * long_runs.PART


def test_a_text_whose_tokens_do_not_tell_their_text_is_encoded_as_a_whole() -> None:
    """As a vocabulary may be that is not one of byte-pair encoding."""
    text = "a" * 10 * long_runs.PART
    assert long_runs.encode(text, lambda text: [1] * len(text), lambda _: b"\xff") == [1] * len(text)


@pytest.mark.parametrize("name", ENGINES)
def test_a_text_of_several_pieces_has_the_ids_of_the_whole(real: dict[str, Engine], name: str) -> None:
    text = "The quick brown fox, and 12 <think>more</think> of them.\n\u6c49\u5b57\u3002 " * 4_000
    assert len(text) > 3 * text_encoder.PIECE
    assert real[name].tokenize(text, special=False) == by_llama_cpp(real["llama.cpp"], text, special=False)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("text", "special"),
    [
        ("<think>x", False),
        ("<|im_start|>", True),
        ("<|im_start|>", False),
        ("word", False),
        ("!?#", False),
        ("a\u0301\u0323", False),
        ("\u0301\u0323", False),
        (" ", False),
        ("7", False),
    ],
)
def test_four_times_the_text_takes_about_four_times_as_long(
    real: dict[str, Engine], name: str, text: str, special: bool
) -> None:
    small, large = (text * (size // len(text)) for size in (40_000, 160_000))
    assert ratio(lambda text: real[name].tokenize(text, special=special), small, large, rounds=3) < 8


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("text", ["many words ", "word", "<think>", "\u0301\u0323", "\u6c49"])
def test_with_a_limit_a_text_far_beyond_it_takes_no_longer_than_a_long_one(
    real: dict[str, Engine], name: str, text: str
) -> None:
    small, large = (text * (size // len(text)) for size in (400_000, 3_200_000))
    assert len(real[name].tokenize(large, special=False, limit=1000)) > 1000
    assert ratio(lambda text: real[name].tokenize(text, special=False, limit=1000), small, large, rounds=3) < 4
