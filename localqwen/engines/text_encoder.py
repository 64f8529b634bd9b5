"""Text to token ids in time linear in the text, whatever the text: what stands before both engines' tokenizers.

Owns the NFC form, the pieces in which a long text is read, and the texts that are one token (`<think>`,
`<|im_start|>`). Byte-pair encoding itself is the library's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from localqwen.engines import long_runs
from localqwen.engines.normalization import nfc

#: How Qwen2 and Qwen3 split a text before byte-pair encoding (tokenizer.json: pre_tokenizer).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Characters of a text that are encoded together.
PIECE = 1 << 16
#: A piece without a boundary, longer than this, is looked at more closely where there is a limit.
LONG_PIECE = 4 * PIECE
#: Letters and digits: every match of QWEN2_SPLIT that has one ends at the latest behind the last of them.
_WORD = (
    r"A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0388-\u038a\u038e-\u03a1\u03a3-\u03ce\u0400-\u0481"
    r"\u05d0-\u05ea\u0620-\u064a\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
#: What no match goes on with behind a letter or digit, and NFC never joins to what stands before it.
_END = r" \t\r\n0-9\"'.,;:!?()\[\]{}=+*\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"
_BOUNDARY = re.compile(f"[{_WORD}][{_END}]")


@dataclass(frozen=True)
class Tag:
    """A text that is always one token. A control token is one only where the caller wants special tokens."""

    text: str
    token: int
    control: bool


class TextEncoder:
    """Turns texts into ids with a library's `encode`, which gets normalized text without tags.

    Tags are looked for in the order of their length, as llama.cpp does: the longest first, each in the whole text.
    """

    def __init__(
        self,
        tags: list[Tag],
        encode: Callable[[str], list[int]],
        token_bytes: Callable[[int], bytes],
        *,
        divisible: bool,
    ) -> None:
        """`token_bytes` returns the bytes of a token. `divisible` says whether the tokenizer does byte-pair encoding
        and splits by QWEN2_SPLIT before, so that long texts may be cut."""
        writable = [tag for tag in tags if tag.text and _normalized(tag.text) == tag.text]
        longest_first = sorted(writable, key=lambda tag: -len(tag.text.encode()))
        self._tags = {True: longest_first, False: [tag for tag in longest_first if not tag.control]}
        self._tokens: Mapping[str, int] = {tag.text: tag.token for tag in longest_first}
        self._encode_plain = encode
        self._token_bytes = token_bytes
        self._divisible = divisible and not any(_BOUNDARY.search(tag.text) for tag in writable)

    def encode(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        """Return the ids of the NFC form; half a surrogate pair, which UTF-8 cannot write, is a question mark.

        With a `limit`, a text that has more ids is not read to its end: more than `limit` ids are then returned, the
        first of the text, or those of a part where one word is longer than the limit allows.
        """
        if special and text in self._tokens:
            return [self._tokens[text]]
        ids: list[int] = []
        for piece in self._pieces(text, len(text) if limit is None else LONG_PIECE):
            if limit is not None and len(piece) > LONG_PIECE:
                ids += self._encode_up_to(limit - len(ids), piece, special)
            else:
                ids += self._encode_piece(piece, special)
            if limit is not None and len(ids) > limit:
                break
        return ids

    def _pieces(self, text: str, longest: int) -> Iterator[str]:
        """Cut a text where that does not change its ids: between a letter and a space, for example. Once a piece would
        be longer than `longest`, the rest is one piece."""
        begin = 0
        while self._divisible and len(text) - begin > PIECE:
            boundary = _BOUNDARY.search(text, begin + PIECE - 1, begin + longest)
            if boundary is None:
                break
            yield text[begin : boundary.start() + 1]
            begin = boundary.start() + 1
        yield text[begin:]

    def _encode_up_to(self, limit: int, piece: str, special: bool) -> list[int]:
        """Return the ids of a piece that has no boundary; if it has far more than `limit`, more than `limit` ids.

        Cut anywhere, the ids change, and their number by a few at each cut: at twice the limit there is no doubt."""
        encode = lru_cache(4)(self._encode_piece)  # a word of one letter has equal parts
        ids: list[int] = []
        for begin in range(0, len(piece), PIECE):
            ids += encode(piece[begin : begin + PIECE], special)
            if len(ids) > 2 * limit + PIECE // 16:
                return ids[: limit + 1]
        return self._encode_piece(piece, special)

    def _encode_piece(self, piece: str, special: bool) -> list[int]:
        text = _normalized(piece)
        parts: list[str | int] = [text] if text else []
        for tag in self._tags[special]:
            if tag.text in text:
                parts = [part for whole in parts for part in _split(whole, tag)]
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self._encode_text(part)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        """Return the ids of a text without tags."""
        if self._divisible and len(text) > LONG_PIECE:
            return long_runs.encode(text, self._encode_plain, self._token_bytes)
        return self._encode_plain(text)


def _normalized(text: str) -> str:
    return text if text.isascii() else nfc(text).encode("utf-8", errors="replace").decode()


def _split(part: str | int, tag: Tag) -> Iterator[str | int]:
    """Cut a text at a tag: the texts between, and the tag's id in its places. An id stays what it is."""
    if isinstance(part, int):
        yield part
        return
    first, *others = part.split(tag.text)
    if first:
        yield first
    for text in others:
        yield tag.token
        if text:
            yield text
