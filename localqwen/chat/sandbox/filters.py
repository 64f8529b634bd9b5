"""The filters and tests of a template: jinja2's own, called after a check of what they would make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import Any

from jinja2.filters import FILTERS
from jinja2.tests import TESTS
from jinja2.utils import _PassArg, pass_context

from localqwen.chat.sandbox import methods
from localqwen.chat.sandbox.budget import (
    ITEM,
    MAX_ITEMS,
    SCALARS,
    Budget,
    LimitReached,
    joined,
    light,
    text_size,
    weigh,
)
from localqwen.chat.sandbox.operators import ESCAPED, binary

#: Filters that neither make anything nor look below the first level of a value.
_HARMLESS = ("abs", "attr", "count", "d", "default", "first", "last", "length", "random")
#: Filters that look at the items of a value one by one.
_LAZY = frozenset({"batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice"})
#: Filters that compare or join the items of a value: a generator is made a list before.
_COLLECTING = frozenset({"dictsort", "groupby", "join", "max", "min", "sort", "sum", "unique"})
#: The longest text for filters that use regular expressions, and for numbers, in characters.
_MAX_MATCHED, _MAX_NUMBER = 1 << 16, 10_000
#: The most values that are sorted, or printed with indentation; digits of rounding; spaces of indentation.
_MAX_SORTED, _MAX_DIGITS, _MAX_INDENT = 1 << 18, 400, 64
#: The longest path of an attribute, in characters.
_MAX_PATH = 10_000
#: Tests that look at the type of a value only.
_HARMLESS_TESTS = frozenset({
    "boolean", "callable", "defined", "escaped", "false", "float", "integer", "iterable", "mapping", "none", "number",
    "sameas", "sequence", "string", "true", "undefined",
})  # fmt: skip
_ARITHMETIC_TESTS = frozenset({"divisibleby", "even", "odd"})
Function = Callable[..., Any]
_PLAIN_JSON = json.JSONEncoder(ensure_ascii=False)


def _matched(value: Any, *_: Any, **__: Any) -> int:
    size = text_size(value)
    if size > _MAX_MATCHED:
        raise LimitReached(f"searches a text of more than {_MAX_MATCHED:,} characters")
    return size


def _escaped(value: Any) -> int:
    return ESCAPED * text_size(value)


def _pieces(value: Any) -> int:
    return ITEM * text_size(value)


def _url(value: Any) -> int:
    return 12 * text_size(value)


def _attributes(value: Any, autospace: bool = True) -> int:
    return _escaped(value)


def _links(
    value: Any, trim_url_limit: Any = None, nofollow: Any = False, target: str | None = None, rel: str | None = None,
    extra_schemes: Any = None,
) -> int:  # fmt: skip
    return _matched(value) * (2 * ESCAPED + len(rel or "") + len(target or ""))


def _wrapped(
    value: Any,
    width: int = 79,
    break_long_words: Any = True,
    wrapstring: str | None = None,
    break_on_hyphens: Any = True,
) -> int:
    return (_matched(value) + 1) * (1 + len(wrapstring or "\n"))


def _indented(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    indentation = len(width) if isinstance(width, str) else width
    return len(value) + methods.lines_of(value) * (ITEM + max(indentation, 0))


def _truncated(value: str, length: int = 255, killwords: bool = False, end: str = "...", leeway: Any = None) -> int:
    return len(value) + len(end)


def _number(value: Any, *_: Any, **__: Any) -> int:
    if isinstance(value, str) and len(value) > _MAX_NUMBER:
        raise LimitReached(f"reads a number of more than {_MAX_NUMBER:,} characters")
    return 0


def _rounded(value: Any, precision: int | None = 0, method: str = "common") -> int:
    if abs(precision or 0) > _MAX_DIGITS:
        raise LimitReached(f"rounds to more than {_MAX_DIGITS} digits")
    return 0


def _counted(value: Any, count: int, fill_with: Any = None) -> int:
    if count > MAX_ITEMS:
        raise LimitReached(f"makes a list of more than {MAX_ITEMS:,} items")
    return 0


def _sorted(value: Any, *_: Any, **__: Any) -> int:
    weigh(value, _MAX_SORTED)
    return 0


def _replaced(value: Any, old: Any, new: Any, count: int | None = None) -> int:
    return methods.size_of_replaced(str(value), str(old), str(new), -1 if count is None else count)


def _stripped(value: Any, chars: str | None = None) -> int:
    return methods.stripped(str(value), chars)


def _other_case(value: Any) -> int:
    return 3 * text_size(value)


def _padded(value: Any, width: int = 80) -> int:
    return max(text_size(value), width)


#: Filter -> the most characters that it makes; the arguments are those of the filter. Others make at most the value's
#: own text.
_BOUNDS: Mapping[str, Function] = {
    **dict.fromkeys(("capitalize", "lower", "upper"), _other_case),
    **dict.fromkeys(("e", "escape", "forceescape"), _escaped),
    **dict.fromkeys(("float", "int", "filesizeformat"), _number),
    **dict.fromkeys(("title", "wordcount"), _pieces),
    **dict.fromkeys(("batch", "slice"), _counted),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "pprint", "sort", "unique"), _sorted),
    "center": _padded,
    "indent": _indented,
    "replace": _replaced,
    "round": _rounded,
    "striptags": _matched,
    "trim": _stripped,
    "truncate": _truncated,
    "urlencode": _url,
    "urlize": _links,
    "wordwrap": _wrapped,
    "xmlattr": _attributes,
}


def filters() -> dict[str, Any]:
    """Return the filters of templates by name."""
    bounded = {name: _bounded(name, function) for name, function in FILTERS.items()}
    own = {"format": _format, "join": _join, "list": _list, "sum": _sum, "tojson": _to_json}
    return bounded | {name: FILTERS[name] for name in _HARMLESS} | own


def tests() -> dict[str, Any]:
    """Return the tests of templates by name."""
    return {
        name: test if name in _HARMLESS_TESTS else _weighing(test, name in _ARITHMETIC_TESTS)
        for name, test in TESTS.items()
    }


def _with_context(function: Function) -> Function:
    """Return the function with the context as first argument, whatever jinja2 passes to it first."""
    match _PassArg.from_obj(function):
        case _PassArg.context:
            return function
        case _PassArg.eval_context:
            return lambda context, *args, **kwargs: function(context.eval_ctx, *args, **kwargs)
        case _PassArg.environment:
            return lambda context, *args, **kwargs: function(context.environment, *args, **kwargs)
    return lambda context, *args, **kwargs: function(*args, **kwargs)


def _bounded(name: str, function: Function) -> Function:
    bound, run = _BOUNDS.get(name), _with_context(function)
    lazy, iterates = name in _LAZY, name in _LAZY | _COLLECTING and name != "reverse"  # which makes a list itself

    @pass_context
    def call(context: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.budget
        if iterates and isinstance(value, GeneratorType):  # a long chain of them would nest in C
            value = budget.items(value)
        if not lazy:
            light(value)
        for each in (*args, *kwargs.values()):
            _check_argument(each, iterates)
        if bound is not None:
            budget.require(bound(value, *args, **kwargs))
        return budget.made(run(context, value, *args, **kwargs))

    return call


def _check_argument(value: Any, may_be_path: bool) -> None:
    """Raise LimitReached for an argument that is too large. A path (`a.b.c`) is split at its dots."""
    if type(value) not in SCALARS:
        weigh(value)
    elif may_be_path and isinstance(value, str) and len(value) > _MAX_PATH:
        raise LimitReached(f"names an attribute with more than {_MAX_PATH:,} characters")


def _weighing(test: Any, arithmetic: bool) -> Function:
    run = _with_context(test)

    @pass_context
    def call(context: Any, value: Any, /, *args: Any) -> Any:
        for each in (value, *args):
            if type(each) not in SCALARS:
                weigh(each)
            if arithmetic and isinstance(each, str):  # `%` would format it
                raise TypeError("a text is neither odd nor even")
        return run(context, value, *args)

    return call


def _items(context: Any, value: Iterable[Any], attribute: str | int | None) -> list[Any]:
    """Return the items of a value, or an attribute of each."""
    items: list[Any] = context.budget.items(value)
    if attribute is None:
        return items
    _check_argument(attribute, True)
    return [*FILTERS["map"](context, items, attribute=attribute)]


@pass_context
def _format(context: Any, value: Any, /, *args: Any, **kwargs: Any) -> Any:
    if args and kwargs:
        raise TypeError("can't handle positional and keyword arguments at the same time")
    return binary(context.budget, "%", value if isinstance(value, str) else str(light(value)), kwargs or args)


@pass_context
def _list(context: Any, value: Iterable[Any]) -> list[Any]:
    return _items(context, value, None)


@pass_context
def _join(context: Any, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    items = _items(context, value, attribute)
    return methods.join(context.budget, context.text(d), map(context.text, items))


@pass_context
def _sum(context: Any, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    items = _items(context, iterable, attribute)
    if isinstance(start, str):
        raise TypeError("sum() can't sum strings")
    if all(type(item) in (bool, float, int) for item in (start, *items)):
        return sum(items, start)  # not one by one: newer versions of Python round the whole sum once
    for item in items:
        start = binary(context.budget, "+", start, item)
    return start


@pass_context
def _to_json(
    context: Any, value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """Return JSON as transformers writes it: jinja2's own filter escapes for HTML, which models never saw."""
    if id(value) not in context.given:
        light(value)
    if sum(map(len, separators or ())) > _MAX_INDENT:
        raise LimitReached(f"makes JSON with separators of more than {_MAX_INDENT} characters")
    if (len(indent) if isinstance(indent, str) else indent or 0) > _MAX_INDENT:
        raise LimitReached(f"makes JSON with an indentation of more than {_MAX_INDENT} characters")
    encoder = _PLAIN_JSON
    if ensure_ascii or indent is not None or separators or sort_keys:
        encoder = json.JSONEncoder(
            ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)
        )
    text = encoder.encode(value) if indent is None else joined(encoder.iterencode(value))
    context.budget.spend(len(text))
    return text
