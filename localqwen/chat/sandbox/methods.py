"""The methods of values that a template may call, with bounds for what they make.

A method that is not in these tables cannot be called: what none of the known templates needs (`encode`, `to_bytes`,
`fromkeys`, …) needs no bound either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Cycler
from markupsafe import Markup

from localqwen.chat.sandbox.budget import ITEM, MAX_TEXT, Budget, LimitReached, light
from localqwen.chat.sandbox.operators import ESCAPED, MAX_FORMAT

#: Returns the most characters that a method makes; called with the text and the method's arguments.
Bound = Callable[..., int]
#: Characters compared at most by searching from the right or by stripping, which are not linear in C.
_MAX_COMPARED = 1 << 28
#: What `splitlines` splits at, except that "\r\n" is one end.
_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_LONG_WIDTH = re.compile(r"\d{5}")


def lines_of(text: str) -> int:
    """Return how many lines `splitlines` makes of a text at most."""
    return 1 + sum(map(text.count, _LINE_ENDS))


def size_of_replaced(text: str, old: str, new: str, count: int = -1) -> int:
    """Return the length of the text with `old` replaced, at most `count` times if that is not negative."""
    found = text.count(old)
    return len(text) + (found if count < 0 else min(found, count)) * max(len(new) - len(old), 0)


def same_size(text: str, *_: Any, **__: Any) -> int:
    """Return the length of the text: the method makes nothing longer, and takes linear time."""
    return len(text)


def other_case(text: str) -> int:
    """Return the most characters of a text in another case."""
    return 3 * len(text)


def padded(text: str, width: int, *_: Any) -> int:
    """Return the length of a text after padding."""
    return max(len(text), width)


def from_right(text: str, part: str, *_: Any) -> int:
    """Return the length of the text. Raise LimitReached where searching from the right would take long."""
    return stripped(text, part)


def stripped(text: str, characters: str | None = None) -> int:
    """Return the length of the text. Raise LimitReached where stripping these characters would take long."""
    if characters is not None and len(text) * len(characters) > _MAX_COMPARED:
        raise LimitReached("searches for a text that is too long")
    return len(text)


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    pieces = (len(text) + 1) // 2 if sep is None else text.count(sep)
    return len(text) + ITEM * (pieces if maxsplit < 0 else min(pieces, maxsplit))


def _split_from_right(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    return stripped(text, sep) and _split(text, sep, maxsplit)


def _split_lines(text: str, keepends: bool = False) -> int:
    return len(text) + ITEM * lines_of(text)


def _expanded(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * tabsize


#: Method of a text -> its bound.
TEXT: Mapping[str, Bound] = {
    **dict.fromkeys(
        ("count", "endswith", "find", "index", "partition", "removeprefix", "removesuffix", "startswith"), same_size
    ),
    **dict.fromkeys(
        (
            "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
            "isprintable", "isspace", "istitle", "isupper",
        ),
        same_size,
    ),
    **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), other_case),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), padded),
    **dict.fromkeys(("lstrip", "rstrip", "strip"), stripped),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), from_right),
    "expandtabs": _expanded,
    "replace": size_of_replaced,
    "rsplit": _split_from_right,
    "split": _split,
    "splitlines": _split_lines,
}  # fmt: skip
_OTHERS: Sequence[tuple[type, frozenset[str]]] = (
    (int, frozenset({"bit_length", "conjugate", "is_integer"})),
    (float, frozenset({"conjugate", "is_integer"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
    (range, frozenset({"count", "index"})),
    (Cycler, frozenset({"next", "reset"})),
    (LoopContext, frozenset({"changed", "cycle"})),
    (Mapping, frozenset({"copy", "get", "items", "keys", "values"})),
)


def call_method(
    budget: Budget,
    environment: Any,
    method: MethodType | BuiltinMethodType,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> Any:
    """Return what a method returns. Raise SecurityError if templates may not call it, LimitReached if it makes too
    much, and what it raises."""
    owner, name = method.__self__, method.__name__
    for each in (*args, *kwargs.values()):
        light(each)
    if not isinstance(owner, str):
        if not any(isinstance(owner, kind) and name in names for kind, names in _OTHERS):
            raise _unknown(owner, name)
        light(owner)
        return budget.made(method(*args, **kwargs))
    if name == "join":
        return join(budget, owner, *args, **kwargs)
    if name in ("format", "format_map"):
        return format_text(budget, environment, owner, *_format_arguments(name, args, kwargs))
    if name not in TEXT:
        raise _unknown(owner, name)
    budget.require(TEXT[name](str(owner), *args, **kwargs) * (ESCAPED if isinstance(owner, Markup) else 1))
    return budget.made(method(*args, **kwargs))


def _unknown(owner: Any, name: str) -> SecurityError:
    return SecurityError(f"a chat template cannot call the method {name!r} of {type(owner).__name__!r}")


def join(budget: Budget, separator: str, values: Any) -> str:
    """Return the texts among `values` joined, as `str.join`."""
    items = budget.items(values)
    size = sum(len(item) for item in items if isinstance(item, str)) + len(separator) * len(items)
    budget.spend(size * (ESCAPED if isinstance(separator, Markup) else 1))
    return separator.join(items)


def _format_arguments(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Any]:
    if name == "format":
        return args, kwargs
    if kwargs or len(args) != 1:
        raise TypeError(f"format_map() takes exactly one argument ({len(args) + len(kwargs)} given)")
    return (), args[0]


def format_text(budget: Budget, environment: Any, pattern: str, args: Sequence[Any], kwargs: Any) -> str:
    """Return `pattern.format(*args, **kwargs)`, where fields reach only what templates reach."""
    if len(pattern) > MAX_FORMAT:
        raise LimitReached(f"formats a text of more than {MAX_FORMAT:,} characters")
    if isinstance(pattern, Markup):
        formatter: Formatter = _EscapeFormatter(environment, escape=pattern.escape)
    else:
        formatter = _Formatter(environment)
    text = type(pattern)(formatter.vformat(pattern, args, kwargs))
    budget.spend(len(text))
    return text


class _Bounded(Formatter):
    """A formatter that stops before its fields make a text too large."""

    _size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return the value, or its text where the field has `!s`, `!r` or `!a`."""
        return super().convert_field(light(value), conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Return the field's text. Raise LimitReached where it is too large."""
        if _LONG_WIDTH.search(format_spec):
            raise LimitReached("formats a text with a width that is too large")
        text = super().format_field(light(value), format_spec)
        self._size += len(text)
        if self._size > MAX_TEXT:
            raise LimitReached(f"makes more than {MAX_TEXT:,} characters at once")
        return text


class _Formatter(_Bounded, SandboxedFormatter):
    pass


class _EscapeFormatter(_Bounded, SandboxedEscapeFormatter):
    pass
