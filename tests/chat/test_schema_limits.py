"""Limits of the schemas that an answer must follow: what is refused, and that what is allowed compiles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from growth import ratio

from localqwen import engines
from localqwen.chat import schema_limits
from localqwen.chat.grammar import Grammars
from localqwen.chat.messages import JsonFormat, Request, Tool
from localqwen.chat.schema_limits import DEEPEST, LARGEST_GRAMMAR, MOST_TOOLS, check_schema
from localqwen.engines.engine import Engine
from localqwen.errors import UsageError

Link = Callable[[dict[str, Any]], dict[str, Any]]
TEXT = {"type": "string"}
#: How a definition can contain the next one, and how many levels that adds.
LINKS: dict[str, tuple[Link, int]] = {
    "alone": (lambda inner: inner, 1),
    "property": (lambda inner: {"type": "object", "properties": {"next": inner}}, 3),
    "anyOf": (lambda inner: {"anyOf": [inner, {"type": "null"}]}, 3),
    "items": (lambda inner: {"type": "array", "items": inner}, 2),
    "prefixItems": (lambda inner: {"type": "array", "prefixItems": [inner]}, 3),
    "additional": (lambda inner: {"type": "object", "additionalProperties": inner}, 2),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = engines.open("demo", context_length=256, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def grammars(engine: Engine) -> Grammars:
    return Grammars(lambda text: engine.tokenize(text, special=False), engine.vocabulary, lambda: engine.stop_tokens)


def chain(length: int, link: Link, *, first: str = "#/$defs/d0") -> dict[str, Any]:
    """A schema of definitions that contain each other, the last one a text."""
    definitions = {f"d{n}": link({"$ref": f"#/$defs/d{n + 1}"}) for n in range(length - 1)}
    return {"$ref": first, "$defs": {**definitions, f"d{length - 1}": TEXT}}


@pytest.mark.parametrize("name", LINKS)
def test_references_are_levels_and_too_many_are_refused(name: str) -> None:
    link, levels = LINKS[name]
    check_schema(chain(DEEPEST // levels - 5, link))
    with pytest.raises(UsageError, match=r"nested \d+ levels deep, at most 500 are possible"):
        check_schema(chain(DEEPEST // levels + 5, link))


@pytest.mark.parametrize("name", LINKS)
def test_what_is_allowed_compiles_in_a_thread(grammars: Grammars, name: str) -> None:
    link, levels = LINKS[name]
    request = Request([], prompt="x", format=JsonFormat(chain(DEEPEST // levels - 5, link)))
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(grammars.constraint(request, thinking=False)))
    thread.start()
    thread.join()
    assert made[0]().allowed().any()


def test_a_schema_of_any_depth_is_measured_without_recursion() -> None:
    deep: dict[str, Any] = TEXT
    for _ in range(50_000):
        deep = {"items": deep}
    with pytest.raises(UsageError, match="nested 50,001 levels deep"):
        check_schema(deep)


TREE = {"$defs": {"tree": {"properties": {"children": {"items": {"$ref": "#/$defs/tree"}}}}}, "$ref": "#/$defs/tree"}


def test_a_schema_that_refers_to_itself_is_as_deep_as_its_definitions_together() -> None:
    check_schema(TREE)
    check_schema({"properties": {"again": {"$ref": "#"}}})
    wide = chain(DEEPEST // 3 + 5, LINKS["property"][0])
    wide["$defs"]["d9"]["properties"]["back"] = {"$ref": "#/$defs/d1"}
    with pytest.raises(UsageError, match="levels deep"):
        check_schema(wide)


@pytest.mark.parametrize("way", ["#/%24defs/d", "#d", "other.json#/d"])
def test_references_that_lead_to_an_unknown_place_count_as_deep_as_the_schema(way: str) -> None:
    definitions = {f"d{n}": {"$anchor": f"d{n}", "properties": {"a": {"$ref": f"{way}{n + 1}"}}} for n in range(200)}
    with pytest.raises(UsageError, match="levels deep"):
        check_schema({"$defs": definitions, "$ref": f"{way}0"})
    check_schema({"$ref": f"{way}0", "$defs": {"d0": {"$anchor": "d0"}}})


def test_many_definitions_beside_each_other_are_not_deep() -> None:
    points = {f"point{n}": {"properties": {"x": {"$ref": "#/$defs/number"}}} for n in range(3_000)}
    check_schema({"$defs": {"number": {"type": "number"}, **points}, "items": {"$ref": "#/$defs/point9"}})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {f"p{n}": TEXT for n in range(2_001)}}, '"properties".*2,001 branches, at most 2,000'),
        ({"items": {"anyOf": [{"type": "object"}] * 2_001}}, '"anyOf".*2,001 branches'),
        ({"oneOf": [{"type": "object"}] * 5_000}, '"oneOf".*5,000 branches'),
    ],
)
def test_too_many_branches_in_one_place_are_refused_with_both_numbers(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_schema(schema)


def test_values_are_not_branches(grammars: Grammars) -> None:
    for schema in ({"enum": list(range(5_000))}, {"anyOf": [{"const": n} for n in range(5_000)]}):
        made = grammars.constraint(Request([], prompt="x", format=JsonFormat(schema)), thinking=False)
        assert made is not None
        assert made().allowed().any()


def tools(count: int, text: str = "") -> tuple[Tool, ...]:
    schema = {"type": "object", "properties": {"x": {"type": "string", "description": text}}, "required": ["x"]}
    return tuple(Tool(f"tool_{number}", "", schema) for number in range(count))


def test_as_many_tools_as_allowed_compile_and_one_more_is_refused(grammars: Grammars) -> None:
    most, more = tools(MOST_TOOLS), tools(MOST_TOOLS + 1)
    request = Request([], prompt="x", tools=most, must_call=tuple(tool.name for tool in most))
    made = grammars.constraint(request, thinking=False)
    assert made is not None
    assert made().allowed().any()
    for fields in ({"must_call": tuple(tool.name for tool in more)}, {"format": JsonFormat()}):
        with pytest.raises(UsageError, match="1,001 tools, at most 1,000 are possible"):
            grammars.constraint(Request([], prompt="x", tools=more, **fields), thinking=False)


def test_tools_that_need_not_be_called_make_no_grammar(grammars: Grammars) -> None:
    assert grammars.constraint(Request([], prompt="x", tools=tools(5_000)), thinking=False) is None
    request = Request([], prompt="x", tools=tools(5_000), must_call=("tool_7",))
    assert grammars.constraint(request, thinking=False) is not None


def test_a_grammar_that_is_too_large_is_refused_with_both_numbers(grammars: Grammars) -> None:
    many = tools(50, "x" * (LARGEST_GRAMMAR // 50))
    request = Request([], prompt="x", tools=many, must_call=tuple(tool.name for tool in many))
    with pytest.raises(UsageError, match=r"5\d\d,\d{3} characters, at most 500,000 are possible"):
        grammars.constraint(request, thinking=False)


def test_an_assertion_of_the_library_is_said_as_what_it_means(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables hold 65,536 symbols."""
    monkeypatch.setattr(schema_limits, "MOST_BRANCHES", 20_000)
    schema = {"properties": {f"p{n}": {"properties": {f"q{m}": TEXT for m in range(1_000)}} for n in range(14)}}
    with pytest.raises(UsageError, match="cannot be followed: it is too large"):
        grammars.constraint(Request([], prompt="x", format=JsonFormat(schema)), thinking=False)


@pytest.mark.parametrize("what", ["definitions", "references", "nesting", "branches"])
def test_four_times_the_schema_takes_about_four_times_as_long(what: str) -> None:
    def nested(levels: int) -> dict[str, Any]:
        schema: dict[str, Any] = TEXT
        for _ in range(levels):
            schema = {"items": schema}
        return schema

    make: dict[str, Callable[[int], Any]] = {
        "definitions": lambda size: chain(size, LINKS["property"][0]),
        "references": lambda size: {"a": {"b": TEXT}, "allOf": [{"$ref": f"#/a/b?{n % 1900}"} for n in range(size)]},
        "nesting": nested,
        "branches": lambda size: [{"enum": ["x"]} for _ in range(size)],
    }

    def measured(schema: Any) -> None:
        try:
            check_schema(schema)
        except UsageError:
            return

    assert ratio(measured, make[what](2_000), make[what](8_000)) < 8
