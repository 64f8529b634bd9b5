"""What `/openapi.json` says about Ollama's routes."""

from __future__ import annotations

from collections.abc import Mapping

from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.serve.api import EFFORTS
from localqwen.serve.encoding import JSON, NDJSON
from localqwen.serve.schema import (
    COUNT,
    FLAG,
    NAME,
    OBJECT,
    REFUSED,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    content,
    list_of,
    object_of,
    posted,
    responses,
    sampling,
    whole,
)

_ERROR = object_of("error", error=TEXT)


def paths() -> Mapping[str, Schema]:
    """Return OpenAPI's description of each route, by path."""
    chat = object_of("model", messages=list_of(_message()), tools=list_of(_tool()), **_fields())
    generate = object_of("model", prompt=TEXT, system=TEXT, raw={"const": False}, **_fields())
    named = object_of("model", model=NAME)
    return {
        "/api/chat": _post("Ollama's chat", chat, _answer("message", OBJECT)),
        "/api/generate": _post("Ollama's generate", generate, _answer("response", TEXT)),
        "/api/tags": _get("The models that are here, for Ollama's clients", _models()),
        "/api/ps": _get("The models that are loaded", _models()),
        "/api/show": _post("One model", named, object_of("details", "model_info", "capabilities"), streams=False),
        "/api/pull": _post("Get a model", object_of("model", model=NAME, stream=FLAG), object_of(status=TEXT)),
        "/api/version": _get("The version of Ollama's API that is spoken", object_of("version", version=TEXT)),
    }


def _get(summary: str, schema: Schema) -> Schema:
    given = content(schema, "the response", JSON)
    return {"get": {"summary": summary, "responses": responses(given, _ERROR, "401", "403")}}


def _post(summary: str, body: Schema, answer: Schema, *, streams: bool = True) -> Schema:
    """Return a POST. Each line of a stream is an answer or an error."""
    given = content(answer, "the response", JSON)
    if streams:
        given["content"][NDJSON] = {"schema": TEXT}
    return posted(summary, body, responses(given, _ERROR, *REFUSED))


def _models() -> Schema:
    listed = object_of("name", "model", name=TEXT, model=TEXT, size=COUNT, digest=TEXT, details=OBJECT)
    return object_of("models", models=list_of(listed))


def _message() -> Schema:
    role = {"enum": ["system", "user", "tool"]}
    return object_of("role", role=role, content=TEXT_OR_NULL, tool_call_id=TEXT)


def _tool() -> Schema:
    return object_of("function", function=object_of("name", name=NAME, description=TEXT, parameters=OBJECT))


def _fields() -> dict[str, Schema]:
    options = object_of(
        **{"repeat_penalty" if name == "repetition_penalty" else name: sampling(name) for name in SAMPLING_RANGES},
        seed=whole(-1, 2**63 - 1),
        num_predict=whole(-2, 2**31 - 1),
        num_ctx=whole(1, 2**31 - 1),
        stop=list_of(TEXT),
    )
    return {
        "model": NAME,
        "stream": {**FLAG, "default": True},
        "think": {"enum": [True, False, None, *EFFORTS]},
        "format": {"anyOf": [{"enum": ["json", "", None]}, OBJECT]},
        "keep_alive": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^-?[0-9]+(ms|s|m|h)$"}]},
        "options": options,
        "logprobs": FLAG,
    }


def _answer(name: str, schema: Schema) -> Schema:
    return object_of("model", "created_at", "done", name, model=TEXT, created_at=TEXT, done=FLAG, **{name: schema})
