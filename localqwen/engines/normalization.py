"""Unicode's normalization form C in time linear in the text.

`unicodedata.normalize` sorts a run of combining marks by insertion: a run of 100,000 takes half a minute, in which no
other thread of the process runs. Here such a run is sorted by its combining classes and composed as UAX #15 defines it;
everything else goes to `unicodedata`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from itertools import groupby

#: `unicodedata` takes runs of marks up to this length: it reorders them in a time that this number bounds.
LONGEST_RUN = 32
_LAST_MARK = 0x1FFFF  # no character above has a combining class or composes with the one before it
_HANGUL_VOWELS_AND_TAILS = range(0x1161, 0x11C3)  # these compose by arithmetic and not by the table


def nfc(text: str, *, longest_run: int = LONGEST_RUN) -> str:
    """Return the NFC form of a text, the same as `unicodedata` gives. Runs of more than `longest_run` characters that
    depend on the one before them are normalized here."""
    if text.isascii():
        return text
    if not _dependent().search(text[:: longest_run + 1]):  # a longer run would stand at one of these places
        return unicodedata.normalize("NFC", text)
    parts: list[str] = []
    at = 0
    for run in _dependent(longest_run + 1).finditer(text):
        begin = max(run.start() - 1, at)  # with the character that the marks belong to
        parts += (unicodedata.normalize("NFC", text[at:begin]), _compose(_decompose(text[begin : run.end()])))
        at = run.end()
    return "".join([*parts, unicodedata.normalize("NFC", text[at:])])


@cache
def _dependent(shortest: int = 1) -> re.Pattern[str]:
    """Return what finds runs of characters that depend on the one before them: a text may be cut before every other
    character, and its parts normalized apart."""
    return re.compile(f"[{_dependent_characters()}]{{{shortest},}}")


@cache
def _dependent_characters() -> str:
    """Return the characters that may be reordered with the one before them, or composed with it."""
    characters = [chr(code) for code in range(0x300, _LAST_MARK + 1)]
    marks = {each for each in characters if unicodedata.combining(each)}
    # U+0F73 and its kind have class 0, and their parts do not.
    decomposable = (each for each in characters if unicodedata.decomposition(each))
    of_marks = {each for each in decomposable if unicodedata.combining(unicodedata.normalize("NFD", each)[0])}
    return "".join(sorted(marks | of_marks | _composing_starters() | set(map(chr, _HANGUL_VOWELS_AND_TAILS))))


def _composing_starters() -> set[str]:
    """Return the characters of class 0 that compose with a starter before them, as U+09BE does with U+09C7."""
    pairs = (unicodedata.decomposition(chr(code)).split(" ") for code in range(0xC0, _LAST_MARK + 1))
    seconds = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and not pair[0].startswith("<")}
    return {second for second in seconds if not unicodedata.combining(second)}


def _decompose(text: str) -> list[str]:
    """Return the NFD form as characters: each decomposed alone, then every run of marks sorted by class."""
    decomposed = "".join(map(_decomposed, text))
    ordered: list[str] = []
    for _, group in groupby(decomposed, key=_is_mark):
        ordered += sorted(group, key=unicodedata.combining)
    return ordered


@lru_cache(1 << 12)
def _decomposed(character: str) -> str:
    return unicodedata.normalize("NFD", character)


def _is_mark(character: str) -> bool:
    return unicodedata.combining(character) != 0


def _compose(characters: list[str]) -> str:
    """Return the canonical composition of an NFD form (UAX #15): a character is composed with the last starter unless
    one stands between them that is a starter too, or has its class or a higher one."""
    result: list[str] = []
    starter, between = -1, -1  # where the last starter stands; the class of what follows it, -1 for nothing
    for character in characters:
        level = unicodedata.combining(character)
        composed = _composed(result[starter] + character) if starter >= 0 and between < level else None
        if composed is not None:
            result[starter] = composed
            continue
        starter, between = (starter, level) if level else (len(result), -1)
        result.append(character)
    return "".join(result)


@lru_cache(1 << 12)
def _composed(pair: str) -> str | None:
    """Return the one character that a starter and a character behind it make; None if they stay two."""
    text = unicodedata.normalize("NFC", pair)
    return text if len(text) == 1 else None
