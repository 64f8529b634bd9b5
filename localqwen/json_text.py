"""Parse JSON from strangers, within limits that are checked before: no text keeps the interpreter for long.

`json.loads` is one call in C, in which no other thread runs. Its time grows with the number of values, not with the
bytes: 8 MiB of `[[],[],…` take seconds, 8 MiB of text 20 ms. So a linear scan counts first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

#: The deepest nesting of lists and objects. Templates and schemas recurse through them; Python's limit is 1,000 frames.
DEEPEST = 100
#: The most values and keys of one text, and the most characters of a number: the largest float has 309 digits.
MOST_VALUES, LONGEST_NUMBER = 200_000, 400
_MARKS = b"[]{},:"
_NOT_MARKS = bytes(set(range(256)) - set(_MARKS))
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: Characters of a number become 0, all others a space.
_NUMBERS = bytes(ord("0") if byte in b"0123456789.eE+-" else ord(" ") for byte in range(256))
#: An escape that may be half of a surrogate pair.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


class Refused(ValueError):
    """A text that is not JSON, or beyond the limits: the message continues a sentence, as in `is not JSON: …`."""


def parse(data: bytes, *, strict: bool = True, finite: bool = True, allowance: int = MOST_VALUES) -> tuple[Any, int]:
    """Return the value of a JSON text, and how many values and keys it has, at most `allowance`. Raise Refused.

    The text is UTF-8, as RFC 8259 wants; `strict` refuses control characters in strings, `finite` NaN and infinity, as
    it wants too. Half a surrogate pair is refused.
    """
    count = check(data, allowance)
    try:
        hooks = _IN_PYTHON if finite else {**_IN_PYTHON, "parse_constant": None}
        value = json.loads(data.decode("utf-8-sig"), strict=strict, **hooks)
    except UnicodeDecodeError as exc:
        raise Refused(f"is not UTF-8: byte {exc.start}") from exc
    except json.JSONDecodeError as exc:
        raise Refused(f"is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}") from exc
    if _SURROGATE.search(data) and not _is_text(value):
        raise Refused("has half a surrogate pair (\\ud800 to \\udfff), which is not text")
    return value, count


def check(data: bytes, allowance: int = MOST_VALUES) -> int:
    """Return an upper bound of the number of values and keys in a JSON text. Raise Refused beyond the limits."""
    outside = _outside_strings(data, allowance)
    if b"0" * (LONGEST_NUMBER + 1) in outside.translate(_NUMBERS):
        raise Refused(f"has a number of more than {LONGEST_NUMBER} characters")
    marks = outside.translate(None, _NOT_MARKS)
    brackets = marks.translate(None, _NOT_BRACKETS)
    openers = brackets.count(b"[") + brackets.count(b"{")
    count = 1 + openers + len(marks) - len(brackets)
    if count > allowance:
        raise _too_many(count, allowance)
    if openers > DEEPEST:
        _check_depth(brackets)
    return count


def _outside_strings(data: bytes, allowance: int) -> bytes:
    """Return what stands outside the strings, with a quotation mark in the place of each string."""
    # What escapes what is decided from the left, so pairs of backslashes go first.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    strings = plain.count(b'"') // 2
    if strings > allowance:  # each is a value or a key
        raise _too_many(strings, allowance)
    return b'"'.join(plain.split(b'"')[::2])


def _check_depth(brackets: bytes) -> None:
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST:
            raise Refused(f"is nested too deeply: more than {DEEPEST} lists and objects in each other")
        if depth < 0:  # it is not JSON, and the parser says where
            return


def _too_many(count: int, allowance: int) -> Refused:
    return Refused(f"has {count:,} values and keys, at most {allowance:,} are allowed")


def _refuse_constant(name: str) -> None:
    raise Refused(f"is not JSON: {name} is not a number in JSON")


def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


#: Functions in Python, where `float` and `int` would do: other threads can run at each call, and numbers take the most
#: time to parse.
_IN_PYTHON: Mapping[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _float, "parse_int": _int}


def _is_text(value: Any) -> bool:
    """Return whether every string in a value can be written as UTF-8."""
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, str):
            if _HALF.search(each):
                return False
        elif isinstance(each, list):
            rest += each
        elif isinstance(each, dict):
            rest += each
            rest += each.values()
    return True
