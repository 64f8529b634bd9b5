"""The ids of a text that holds one very long word: megabytes of letters, of blanks, of dashes.

Byte-pair encoding takes such a word as a whole, and half a minute for 8 MB of spaces. Here it is encoded in parts, with
the same ids. A text's ids are those of two parts joined if the last token of the first and the first of the second are
what their own text is encoded as: merges that do not cross the seam are the same with and without the other part, and
whether the first that crosses it comes about depends on these two tokens only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

#: Characters of a run that are encoded together.
PART = 1 << 14
#: How many tokens before a seam are given up to find one that holds.
_MOST_BACK = 16
#: Runs that belong to one match of QWEN2_SPLIT (text_encoder.py). Where one is cut, both parts are matched as before.
_RUNS = re.compile(r"[A-Za-z]+|[ \t]+|[\r\n]+|[!-/:-@\[-`{-~]+")

Encode = Callable[[str], list[int]]


def encode(text: str, whole: Encode, token_bytes: Callable[[int], bytes]) -> list[int]:
    """Return the ids that `whole` gives to a text. `token_bytes` returns the bytes of a token."""
    remembered = lru_cache(4)(whole)  # a run of one character has equal parts
    parts = _parts(text)
    ids = list(remembered(parts[0]))
    for before, part in pairwise(parts):
        if not _join(ids, before, part, remembered, token_bytes):
            return whole(text)
    return ids


def _parts(text: str) -> list[str]:
    """Cut a text inside its long runs, far from their ends."""
    cuts = [0]
    for run in _RUNS.finditer(text):
        if run.end() - run.start() >= 4 * PART and _may_be_cut(text, run.start(), run.end()):
            cuts += range(run.start() + PART, run.end() - PART, PART)
    return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _may_be_cut(text: str, begin: int, end: int) -> bool:
    """Return whether a match that contains the run begins where it does without the run's end. Of blanks between other
    white space it may not: a line break behind them would belong to the same match as one before them."""
    blanks = text[begin] in " \t"
    return not (blanks and begin and text[begin - 1].isspace() and text[end : end + 1].isspace())


def _join(ids: list[int], before: str, part: str, encode: Encode, token_bytes: Callable[[int], bytes]) -> bool:
    """Add the ids of a part, and change the last ones, of `before`, if they depend on it. Return whether that is
    possible at a seam nearby."""
    for back in range(min(_MOST_BACK, len(ids) - 1)):
        kept = len(ids) - back
        tail = b"".join(map(token_bytes, ids[kept:])).decode(errors="replace")
        following = encode(tail + part)
        pair = [ids[kept - 1], following[0]]
        if before.endswith(tail) and encode(b"".join(map(token_bytes, pair)).decode(errors="replace")) == pair:
            ids[kept:] = following
            return True
    return False
