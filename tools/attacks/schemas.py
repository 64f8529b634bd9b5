"""Hostile JSON schemas: deep, wide, recursive, or with a giant grammar behind few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

Make = Callable[[Random, int], Any]


def deep(random: Random, size: int) -> Any:
    """Return objects inside objects, as deep as Python can write them."""
    made: Any = {"type": "string"}
    for _ in range(min(size, 300)):
        made = {"type": "object", "properties": {"a": made}, "required": ["a"]}
    return random.choice([made, made, {"not": made}, {"type": "array", "items": made}])


def doubling(random: Random, size: int) -> Any:
    """Return a schema that doubles with each step."""
    step = random.choice(["anyOf", "oneOf", "allOf"])
    made: Any = {"type": "integer"}
    for _ in range(min(size, 16)):
        made = {step: [made, {"type": "array", "items": made} if step != "allOf" else made]}
    return random.choice([made, made, {"if": made, "then": made, "else": made}])


def wide(random: Random, size: int) -> Any:
    """Return thousands of branches or properties."""
    properties = {f"p{number}": {"type": "string"} for number in range(size)}
    objects = [{"type": "object", "properties": {name: {}}, "required": [name]} for name in properties]
    return random.choice(
        [
            {"enum": [f"value {number}" for number in range(size * 10)]},
            {"anyOf": [{"const": number} for number in range(size)]},
            {"oneOf": objects}, {"anyOf": objects}, {"allOf": objects}, {"type": ["string"] * size},
            {"type": "object", "properties": properties, "required": list(properties)},
            {"type": "object", "properties": properties}, {"prefixItems": objects, "type": "array"},
        ]
    )  # fmt: skip


def pattern(random: Random, size: int) -> Any:
    """Return a text by a regular expression that takes many states."""
    patterns = [
        "(a+)+$", "(a|a)*b", "(a{1000}){1000}", "((a{99}){99}){99}", f"[ab]*a[ab]{{{size}}}", f"(.*){{{size}}}x",
        "(?=a)b", f"\\p{{L}}{{{size}}}", "(" * size + ")" * size, "a|" * size, "[", "(?i)" + "é" * size,
        "^.{0,100000}$", "\\1(a)", "(x|y|z){1,30000}" * 9, ".*" * size,
    ]  # fmt: skip
    chosen = random.choice(patterns)
    text = {"type": "string", "pattern": chosen}
    return random.choice([text, text, {"patternProperties": {chosen: {}}}, {"type": "string", "format": chosen}])


def counted(random: Random, size: int) -> Any:
    """Return lists and texts of many elements, and numbers between odd bounds."""
    return random.choice(
        [
            {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
            {"type": "array", "items": {"type": "string", "maxLength": 10**6}, "minItems": size, "maxItems": 10**6},
            {"type": "string", "minLength": 10**9}, {"type": "string", "maxLength": 10**9},
            {"type": "string", "minLength": 50_000, "maxLength": 60_000}, {"type": "number", "multipleOf": 1e-300},
            {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
            {"type": "integer", "multipleOf": 10**9 + 7},
            {"type": "object", "minProperties": 10**6, "additionalProperties": {"type": "integer"}},
        ]
    )  # fmt: skip


def references(random: Random, size: int) -> Any:
    """Return a schema that refers to itself, in a long chain, or to nowhere."""
    chain = {f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(size)}
    twice = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}
    return random.choice(
        [
            {"$defs": {"a": twice}, "$ref": "#/$defs/a"}, {"$ref": "#"}, {"$ref": "#/$defs/" + "a/" * size},
            {"$defs": {**chain, f"d{size}": {}}, "$ref": "#/$defs/d0"}, {"$ref": "http://127.0.0.1:9/x"},
            {"$ref": "file:///etc/passwd"}, {"$id": "x", "$ref": "x"}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        ]
    )  # fmt: skip


def wrong(random: Random, size: int) -> Any:
    """Return what is no schema."""
    return random.choice(
        [
            {"properties": 1}, True, False, {}, {"type": "x" * size}, {"type": 1}, {"enum": []}, {"anyOf": []},
            {"required": "a" * size}, {"x-guidance": {"lark": "start: start"}}, {"items": None}, {"minItems": -1},
            {"maximum": 1e400}, {"const": "\0" * size}, {"properties": {"\x1b[2J" * size: {}}},
        ]
    )  # fmt: skip


SCHEMAS: Mapping[str, Make] = {
    "deep": deep, "doubling": doubling, "wide": wide, "pattern": pattern, "counted": counted,
    "references": references, "wrong": wrong,
}  # fmt: skip


def schema(random: Random) -> Any:
    """Return any of them, of one of four sizes."""
    make = SCHEMAS[random.choice(list(SCHEMAS))]
    return make(random, random.choice([10, 90, 1_000, 10_000]))
