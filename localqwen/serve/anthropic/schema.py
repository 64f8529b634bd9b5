"""What `/openapi.json` says about Anthropic's routes."""

from __future__ import annotations

from collections.abc import Mapping

from localqwen.serve.encoding import JSON, SSE
from localqwen.serve.schema import (
    COUNT,
    FLAG,
    NAME,
    OBJECT,
    REFUSED,
    TEXT,
    Schema,
    content,
    list_of,
    object_of,
    posted,
    responses,
    sampling,
)

_ERROR = object_of(
    "type", "error", type={"const": "error"}, error=object_of("type", "message", type=TEXT, message=TEXT)
)


def paths() -> Mapping[str, Schema]:
    """Return OpenAPI's description of each route, by path."""
    counted = object_of("input_tokens", input_tokens=COUNT)
    return {
        "/v1/messages": _post("Anthropic's messages", _request(limited=True), _message(), streams=True),
        "/v1/messages/count_tokens": _post("The tokens of a prompt", _request(limited=False), counted),
    }


def _post(summary: str, body: Schema, answer: Schema, *, streams: bool = False) -> Schema:
    given = content(answer, "the response", JSON)
    if streams:
        given["content"][SSE] = {"schema": object_of("data", data=TEXT, event=TEXT)}
    return posted(summary, body, responses(given, _ERROR, *REFUSED))


def _request(*, limited: bool) -> Schema:
    text = object_of("type", "text", type={"const": "text"}, text=TEXT)
    message = object_of("role", "content", role={"const": "user"}, content={"anyOf": [TEXT, list_of(text)]})
    tool = object_of("name", "input_schema", name=NAME, description=TEXT, input_schema=OBJECT)
    off_or_adaptive = object_of("type", type={"enum": ["disabled", "adaptive"]})
    limit = {"max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, "stream": FLAG}
    return object_of(
        *("model", "messages", "max_tokens")[: 3 if limited else 2],
        model=NAME,
        messages=list_of(message, minItems=1),
        system={"anyOf": [TEXT, list_of(text)]},
        tools=list_of(tool),
        tool_choice=object_of("type", type={"enum": ["auto", "none"]}, disable_parallel_tool_use=FLAG),
        thinking={"anyOf": [off_or_adaptive, _enabled()]},
        stop_sequences=list_of(TEXT),
        **{name: sampling(name) for name in ("temperature", "top_p", "top_k")},
        **(limit if limited else {}),
    )


def _enabled() -> Schema:
    budget = {"type": "integer", "minimum": 1, "description": "less than max_tokens"}
    return object_of("type", "budget_tokens", type={"const": "enabled"}, budget_tokens=budget)


def _message() -> Schema:
    return object_of(
        "id",
        "type",
        "role",
        "content",
        "usage",
        type={"const": "message"},
        role={"const": "assistant"},
        content=list_of(object_of("type", type=TEXT)),
        usage=object_of("input_tokens", "output_tokens", input_tokens=COUNT, output_tokens=COUNT),
    )
