"""The operators of a template, with bounds for what they make: numbers in bits, texts and lists in length."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from localqwen.chat.sandbox.budget import MAX_BITS, MAX_ITEMS, Budget, LimitReached, text_size

#: What escaping makes of one character at most (`&#34;`), and what a conversion of `%` or `{}` may pad to.
ESCAPED, MAX_WIDTH = 6, 9_999
_WIDTH = re.compile(r"\d{5}|\*")
_CONVERSION = re.compile(r"%[#0\- +]*(?:\*|\d{5})|%[#0\- +]*\d*\.(?:\*|\d{5})")
#: The longest text with `%` or `{}` conversions, in characters.
MAX_FORMAT = 1 << 20
#: Sign -> Python's function for it.
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def binary(budget: Budget, sign: str, left: Any, right: Any) -> Any:
    """Return `left sign right`. Raise LimitReached where that would be too large, and what Python raises."""
    if isinstance(left, int) and isinstance(right, int):
        return _whole(sign, left, right)
    if sign == "+":
        _check_sum(budget, left, right)
    elif sign == "*":
        _check_repeat(budget, left, right)
        _check_repeat(budget, right, left)
    elif sign == "%" and isinstance(left, str):
        _check_format(budget, left, right)
    return budget.made(SIGNS[sign](left, right))


def add_all(budget: Budget, parts: Sequence[Any]) -> Any:
    """Return the sum of the parts from left to right, with one check where all are texts."""
    size = 0
    for part in parts:
        if type(part) is not str:
            break
        size += len(part)
    else:
        budget.spend(size)
        return "".join(parts)
    total = parts[0]
    for part in parts[1:]:
        total = binary(budget, "+", total, part)
    return total


def _whole(sign: str, left: int, right: int) -> Any:
    bits = left.bit_length() + right.bit_length()
    if sign == "**" and right > 0:
        bits = left.bit_length() * right
    if bits > MAX_BITS:
        raise LimitReached(f"computes with whole numbers of more than {MAX_BITS:,} bits")
    return SIGNS[sign](left, right)


def _check_sum(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        escaped = ESCAPED if isinstance(left, Markup) or isinstance(right, Markup) else 1
        budget.require(escaped * (len(left) + len(right)))


def _check_repeat(budget: Budget, sequence: Any, count: Any) -> None:
    if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
        size = len(sequence) * count
        if size > MAX_ITEMS and not isinstance(sequence, str):
            raise LimitReached(f"makes a list of more than {MAX_ITEMS:,} items")
        budget.require(size)


def _check_format(budget: Budget, pattern: str, values: Any) -> None:
    """Raise LimitReached where a width or the values make a text too large. A key in parentheses may hold anything,
    also more parentheses: in such a text any long number counts as a width."""
    if len(pattern) > MAX_FORMAT or (_WIDTH if "%(" in pattern else _CONVERSION).search(pattern):
        raise LimitReached("formats a text with a width that is too large or computed")
    conversions = pattern.count("%")
    size = sum(map(text_size, values)) if isinstance(values, tuple) else text_size(values)
    uses = conversions if "%(" in pattern else 1  # how often a conversion may name the same value
    budget.require(len(pattern) + conversions * MAX_WIDTH + uses * size)
