"""What `/openapi.json` says of the Ollama and Anthropic routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.serve.api import EFFORTS
from localqwen.serve.encoding import JSON, NDJSON, SSE

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NAME: Schema = {"type": "string", "minLength": 1}
_OBJECT: Schema = {"type": "object"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_REFUSED = ("400", "401", "403", "404", "408", "413", "500", "502", "503", "507")


def paths() -> Mapping[str, Schema]:
    chat = _object("model", messages=_list_of(_ollama_message()), tools=_list_of(_ollama_tool()), **_ollama_fields())
    generate = _object("model", prompt=_TEXT, system=_TEXT, raw={"const": False}, **_ollama_fields())
    named = _object("model", model=_NAME)
    return {
        "/api/chat": _ollama("Ollama's chat", chat, _ollama_answer("message", _OBJECT)),
        "/api/generate": _ollama("Ollama's generate", generate, _ollama_answer("response", _TEXT)),
        "/api/tags": _got("The models that are here, for Ollama's clients", _models()),
        "/api/ps": _got("The models that are loaded", _models()),
        "/api/show": _ollama("One model", named, _object("details", "model_info", "capabilities"), streams=False),
        "/api/pull": _ollama("Get a model", _object("model", model=_NAME, stream=_flag()), _object(status=_TEXT)),
        "/api/version": _got("The version of Ollama's API that is spoken", _object("version", version=_TEXT)),
        "/v1/messages": _anthropic("Anthropic's messages", _messages(limited=True), _message(), streams=True),
        "/v1/messages/count_tokens": _anthropic(
            "The tokens of a prompt", _messages(limited=False), _object("input_tokens", input_tokens=_COUNT)
        ),
    }


def _object(*required: str, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _list_of(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def _flag() -> Schema:
    return {"type": ["boolean", "null"]}


def _whole(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


def sampling(name: str) -> Schema:
    """Return the schema of a field of `Sampling`."""
    bounds = SAMPLING_RANGES[name]
    lower = "exclusiveMinimum" if bounds.above_low else "minimum"
    kind = "integer" if bounds.whole else "number"
    return {"type": [kind, "null"], lower: bounds.low, "maximum": bounds.high}


def _content(schema: Schema, what: str, *media_types: str) -> Schema:
    return {"description": what, "content": {media_type: {"schema": schema} for media_type in media_types}}


def _answers(given: Schema, error: Schema, *codes: str) -> Schema:
    return {"200": given, **{code: _content(error, "refused, with the reason", JSON) for code in codes}}


_OLLAMA_ERROR = _object("error", error=_TEXT)


def _got(summary: str, schema: Schema) -> Schema:
    answers = _answers(_content(schema, "what was asked for", JSON), _OLLAMA_ERROR, "401", "403")
    return {"get": {"summary": summary, "responses": answers}}


def _ollama(summary: str, body: Schema, answer: Schema, *, streams: bool = True) -> Schema:
    """Streams have an answer, or an error, on every line."""
    given = _content(answer, "what was asked for", JSON)
    if streams:
        given["content"][NDJSON] = {"schema": _TEXT}
    return _posted(summary, body, _answers(given, _OLLAMA_ERROR, *_REFUSED))


def _posted(summary: str, body: Schema, responses: Schema) -> Schema:
    asked = {"required": True, "content": {JSON: {"schema": body}}}
    return {"post": {"summary": summary, "requestBody": asked, "responses": responses}}


def _models() -> Schema:
    listed = _object("name", "model", name=_TEXT, model=_TEXT, size=_COUNT, digest=_TEXT, details=_OBJECT)
    return _object("models", models=_list_of(listed))


def _ollama_message() -> Schema:
    role = {"enum": ["system", "user", "tool"]}
    return _object("role", role=role, content={"type": ["string", "null"]}, tool_call_id=_TEXT)


def _ollama_tool() -> Schema:
    return _object("function", function=_object("name", name=_NAME, description=_TEXT, parameters=_OBJECT))


def _ollama_fields() -> dict[str, Schema]:
    options = _object(
        **{"repeat_penalty" if name == "repetition_penalty" else name: sampling(name) for name in SAMPLING_RANGES},
        seed=_whole(-1, 2**63 - 1),
        num_predict=_whole(-2, 2**31 - 1),
        num_ctx=_whole(1, 2**31 - 1),
        stop=_list_of(_TEXT),
    )
    return {
        "model": _NAME,
        "stream": {**_flag(), "default": True},
        "think": {"enum": [True, False, None, *EFFORTS]},
        "format": {"anyOf": [{"enum": ["json", "", None]}, _OBJECT]},
        "keep_alive": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^-?[0-9]+(ms|s|m|h)$"}]},
        "options": options,
        "logprobs": _flag(),
    }


def _ollama_answer(name: str, schema: Schema) -> Schema:
    return _object("model", "created_at", "done", name, model=_TEXT, created_at=_TEXT, done=_flag(), **{name: schema})


_ANTHROPIC_ERROR = _object(
    "type", "error", type={"const": "error"}, error=_object("type", "message", type=_TEXT, message=_TEXT)
)


def _anthropic(summary: str, body: Schema, answer: Schema, *, streams: bool = False) -> Schema:
    given = _content(answer, "what was asked for", JSON)
    if streams:
        given["content"][SSE] = {"schema": _object("data", data=_TEXT, event=_TEXT)}
    return _posted(summary, body, _answers(given, _ANTHROPIC_ERROR, *_REFUSED))


def _messages(*, limited: bool) -> Schema:
    text = _object("type", "text", type={"const": "text"}, text=_TEXT)
    message = _object("role", "content", role={"const": "user"}, content={"anyOf": [_TEXT, _list_of(text)]})
    tool = _object("name", "input_schema", name=_NAME, description=_TEXT, input_schema=_OBJECT)
    off_or_adaptive = _object("type", type={"enum": ["disabled", "adaptive"]})
    limit = {"max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}, "stream": _flag()}
    return _object(
        *("model", "messages", "max_tokens")[: 3 if limited else 2],
        model=_NAME,
        messages=_list_of(message, minItems=1),
        system={"anyOf": [_TEXT, _list_of(text)]},
        tools=_list_of(tool),
        tool_choice=_object("type", type={"enum": ["auto", "none"]}, disable_parallel_tool_use=_flag()),
        thinking={"anyOf": [off_or_adaptive, _enabled()]},
        stop_sequences=_list_of(_TEXT),
        **{name: sampling(name) for name in ("temperature", "top_p", "top_k")},
        **(limit if limited else {}),
    )


def _enabled() -> Schema:
    budget = {"type": "integer", "minimum": 1, "description": "less than max_tokens"}
    return _object("type", "budget_tokens", type={"const": "enabled"}, budget_tokens=budget)


def _message() -> Schema:
    return _object(
        "id",
        "type",
        "role",
        "content",
        "usage",
        type={"const": "message"},
        role={"const": "assistant"},
        content=_list_of(_object("type", type=_TEXT)),
        usage=_object("input_tokens", "output_tokens", input_tokens=_COUNT, output_tokens=_COUNT),
    )
